package transfer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"nbc/transfer/store"
)

const (
	// conditionsPath is where collectors note what the store's conditional writes were found to do.
	conditionsPath = "gc/probe"
	// trialPrefix is where they try them out.
	trialPrefix = "gc/p/"

	conditionsVersion = 1
	// conditionsAge is how long a good note is believed. A store is replaced or configured anew once in a while; the
	// 1,500 small requests of a probe cost half a cent.
	conditionsAge = 7 * 24 * time.Hour
	// probeAge is when the object of a probe that was killed may be removed. Were it that of one that is still going on,
	// that one would take the store for worse than it is.
	probeAge = 24 * time.Hour
	// contenders is how many write at once. A store that looks first and then writes lets several of 16 win.
	contenders = 16
	// races is how many objects are put while somebody else swaps or deletes them, at once, and deleteRaces how often that
	// is done with deletes. It takes luck to notice a store that looks first: versitygw 1.8.0 does so when it deletes, and
	// lost an object in two of three probes of 16 races, and in nine of ten of 96.
	races       = 96
	deleteRaces = 3
)

// Conditions says what a store's conditional writes were found to do.
type Conditions struct {
	Version int       `json:"version"`
	Time    time.Time `json:"time"`
	// Create is about a Put that asks for no object to be there, Swap about one that asks for a version: what collectors
	// need among each other.
	Create Answer `json:"create"`
	Swap   Answer `json:"swap"`
	// Drop is about a Put that asks for a version while another one asks for nothing: what dropping a name needs.
	Drop Answer `json:"drop"`
	// Delete is about deleting on condition of a version while another one puts: what removing tombstones needs.
	Delete Answer `json:"delete"`
}

// Answer is one of them.
type Answer struct {
	Works bool `json:"works"`
	// Found says what was seen, for people.
	Found string `json:"found"`
}

// works says whether collectors can rely on the store.
func (c *Conditions) works() bool { return c.Create.Works && c.Swap.Works }

// ProbeConditions tries out the conditional writes of the store, on objects of its own, which it removes again. The
// error says that the store could not be asked; that it gave a wrong answer, or refused, is what Conditions tell.
func (c *Cache) ProbeConditions(ctx context.Context) (Conditions, error) {
	found := Conditions{Version: conditionsVersion, Time: c.now().UTC().Truncate(time.Second)}
	key := trialPrefix + randomName()
	version, err := c.probeCreate(ctx, key, &found.Create)
	if err == nil && found.Create.Works {
		version, err = c.probeSwap(ctx, key, version, &found.Swap)
	}
	if err == nil && found.Swap.Works {
		err = c.probeRaces(ctx, key, &found.Drop, func(ctx context.Context, key, version string) error {
			_, err := c.Store.Put(ctx, key, []byte(randomName()), store.Condition{IfVersion: version})
			return err
		})
	}
	if err == nil && found.Drop.Works {
		err = c.probeDelete(ctx, key, version, &found.Delete)
	}
	if err2 := c.Store.Delete(ctx, key); err == nil && err2 != nil {
		err = fmt.Errorf("removing the object of a probe: %w", err2)
	}
	return found, err
}

// contend lets many put at once, and returns the version of the only one that won.
func (c *Cache) contend(ctx context.Context, key string, condition store.Condition, a *Answer) (string, error) {
	versions, errs := make([]string, contenders), make([]error, contenders)
	var wg sync.WaitGroup
	for i := range contenders {
		wg.Go(func() {
			versions[i], errs[i] = c.Store.Put(ctx, key, fmt.Appendf(nil, "%d %s", i, randomName()), condition)
		})
	}
	wg.Wait()
	won := -1
	winners := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won = i
			winners++
		case errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
			return "", fmt.Errorf("probing the store: %w", err)
		case !errors.Is(err, store.ErrConflict):
			a.Found = "refused: " + err.Error()
			return "", nil
		}
	}
	a.Found = fmt.Sprintf("%d of %d at once won", winners, contenders)
	if winners != 1 {
		return "", nil
	}
	o, err := c.Store.Get(ctx, key, store.Read{})
	if err != nil {
		return "", fmt.Errorf("probing the store: %w", err)
	}
	if o.Version != versions[won] {
		a.Found += ", but another one was stored"
		return "", nil
	}
	a.Works = true
	return o.Version, nil
}

func (c *Cache) probeCreate(ctx context.Context, key string, a *Answer) (version string, err error) {
	return c.contend(ctx, key, store.Condition{IfAbsent: true}, a)
}

func (c *Cache) probeSwap(ctx context.Context, key, version string, a *Answer) (string, error) {
	stale := version
	version, err := c.contend(ctx, key, store.Condition{IfVersion: version}, a)
	if err != nil || !a.Works {
		return "", err
	}
	a.Works = false
	for _, try := range []struct {
		key, version, what string
		want               error
	}{
		{key, stale, "a stale version", store.ErrConflict},
		{key + "x", stale, "a version of what is absent", store.ErrConflict},
		{key, version, "the right version", nil},
	} {
		v, err := c.Store.Put(ctx, try.key, []byte(randomName()), store.Condition{IfVersion: try.version})
		switch {
		case errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
			return "", fmt.Errorf("probing the store: %w", err)
		case try.want == nil && err != nil:
			a.Found += fmt.Sprintf(", %s refused: %v", try.what, err)
			return "", nil
		case try.want != nil && !errors.Is(err, try.want):
			a.Found += fmt.Sprintf(", %s: %v", try.what, errOrAccepted(err))
			if err == nil && try.key != key {
				return "", c.Store.Delete(ctx, try.key)
			}
			return "", nil
		}
		if err == nil {
			version = v
		}
	}
	a.Works = true
	a.Found += ", stale ones refused, the right one accepted"
	return version, nil
}

func (c *Cache) probeDelete(ctx context.Context, key, version string, a *Answer) error {
	d, ok := c.Store.(conditionalDeleter)
	if !ok {
		a.Found = deleteUnknown
		return nil
	}
	err := d.DeleteIf(ctx, key, version+"0")
	switch {
	case errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
		return fmt.Errorf("probing the store: %w", err)
	case !errors.Is(err, store.ErrConflict):
		a.Found = fmt.Sprintf("a wrong version: %v", errOrAccepted(err))
		return nil
	}
	if err := d.DeleteIf(ctx, key, version); err != nil {
		if errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return fmt.Errorf("probing the store: %w", err)
		}
		a.Found = fmt.Sprintf("the right version refused: %v", err)
		return nil
	}
	if _, err := c.Store.Get(ctx, key, store.Read{}); !errors.Is(err, store.ErrNotExist) {
		if err != nil {
			return fmt.Errorf("probing the store: %w", err)
		}
		a.Found = "the right version accepted, and nothing deleted"
		return nil
	}
	for range deleteRaces {
		if err := c.probeRaces(ctx, key, a, d.DeleteIf); err != nil || !a.Works {
			return err
		}
	}
	return nil
}

// probeRaces puts objects while change changes them on condition of what they were before. Whoever is first, what was
// put is there in the end. A store that looks first and changes then loses some.
func (c *Cache) probeRaces(
	ctx context.Context, key string, a *Answer, change func(ctx context.Context, key, version string) error,
) error {
	keys, errs, lost := make([]string, races), make([]error, races), make([]bool, races)
	var wg sync.WaitGroup
	for i := range races {
		keys[i] = fmt.Sprintf("%s-%d", key, i)
		wg.Go(func() { lost[i], errs[i] = c.race(ctx, keys[i], change) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil { // and mostly many others of the same kind
			return fmt.Errorf("probing the store: %w", errors.Join(err, c.Store.Delete(ctx, keys...)))
		}
	}
	n := 0
	for _, l := range lost {
		if l {
			n++
		}
	}
	a.Found = fmt.Sprintf("%d of %d objects lost that were put at the same moment", n, races)
	a.Works = n == 0
	if err := c.Store.Delete(ctx, keys...); err != nil {
		return fmt.Errorf("removing the objects of a probe: %w", err)
	}
	return nil
}

// race says whether what was put is not there in the end.
func (c *Cache) race(
	ctx context.Context, key string, change func(ctx context.Context, key, version string) error,
) (lost bool, err error) {
	version, err := c.Store.Put(ctx, key, []byte(randomName()), store.Condition{})
	if err != nil {
		return false, err
	}
	var put string
	var putErr error
	var both sync.WaitGroup
	both.Go(func() { put, putErr = c.Store.Put(ctx, key, []byte(randomName()), store.Condition{}) })
	err = change(ctx, key, version)
	both.Wait()
	if errors.Is(err, store.ErrConflict) {
		err = nil
	}
	if err := errors.Join(putErr, err); err != nil {
		return false, err
	}
	o, err := c.Store.Get(ctx, key, store.Read{})
	if errors.Is(err, store.ErrNotExist) {
		return true, nil
	}
	return o.Version != put, err
}

func errOrAccepted(err error) string {
	if err == nil {
		return "accepted"
	}
	return err.Error()
}

// deleteUnknown is what is found of deletes where the Store has no such method.
const deleteUnknown = "not known for this kind of store"

// networkStore is a store that may be on a file system that other machines write to, as package dir has it.
type networkStore interface {
	FileSystem() (name string, network bool, err error)
}

// checkConditions finds out whether the store is one that can be collected.
func (g *collection) checkConditions(ctx context.Context, plain store.Store) error {
	if err := g.learnConditions(ctx, plain); err != nil {
		return err
	}
	c := &g.conditions
	if g.o.KeepWithin > 0 {
		if err := c.dropping(); err != nil {
			return err
		}
	}
	if c.works() {
		return nil
	}
	if !g.o.OnlyCollector {
		return c.unsafe()
	}
	g.warn("%v", c.unsafe())
	return nil
}

// unsafe says why collectors cannot rely on the store.
func (c *Conditions) unsafe() error {
	return fmt.Errorf("%w: creating an object: %s; replacing one: %s", ErrUnsafe, c.Create.Found, c.Swap.Found)
}

// dropping says why names cannot be dropped, if they cannot.
func (c *Conditions) dropping() error {
	if c.Drop.Works {
		return nil
	}
	return fmt.Errorf("%w for dropping names: %s", ErrUnsafe, cmp.Or(c.Drop.Found, c.Swap.Found, c.Create.Found))
}

// learnConditions finds out what the store's conditional writes do. What was found before is believed, if it was good
// and is not old; what is found is noted.
func (g *collection) learnConditions(ctx context.Context, plain store.Store) error {
	if n, ok := plain.(networkStore); ok {
		name, network, err := n.FileSystem()
		if err != nil {
			return err
		}
		if network && !g.o.OnlyCollector {
			return fmt.Errorf("%w: it is on %s, where locks and what other machines see cannot be relied on", ErrUnsafe, name)
		}
	}
	o, err := g.cache.Store.Get(ctx, conditionsPath, store.Read{Max: maxSmall})
	if err != nil && !errors.Is(err, store.ErrNotExist) && !errors.Is(err, store.ErrTooLarge) {
		return fmt.Errorf("reading %s: %w", conditionsPath, err)
	}
	c := &g.conditions
	age := time.Duration(-1)
	if err == nil && json.Unmarshal(o.Data, c) == nil && c.Version == conditionsVersion {
		age = g.cache.now().Sub(c.Time)
	}
	probing := *g.cache
	if d, ok := plain.(conditionalDeleter); ok {
		if c, ok := g.cache.Store.(*counted); ok {
			d = countedDeleter{d, c}
		}
		g.deleter = d
		probing.Store = deleting{g.cache.Store, d}
	}
	if g.fresh || age < 0 || age > conditionsAge || !c.works() || g.deleter != nil && c.Delete.Found == deleteUnknown {
		g.cache.Progress.phase("trying out the store's conditional writes")
		if *c, err = probing.ProbeConditions(ctx); err != nil {
			return err
		}
		data, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			return err
		}
		if _, err := g.cache.Store.Put(ctx, conditionsPath, append(data, '\n'), store.Condition{}); err != nil {
			return fmt.Errorf("putting %s: %w", conditionsPath, err)
		}
	}
	if !c.Delete.Works {
		g.deleter = nil
	}
	return nil
}

// deleting is a Store beside what it can do as a conditionalDeleter.
type deleting struct {
	store.Store
	conditionalDeleter
}
