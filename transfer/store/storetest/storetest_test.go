package storetest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"nbc/transfer/store"
)

func TestMemory(t *testing.T) {
	Test(t, func(*testing.T) store.Store { return Memory() })
}

func TestFaultyWithoutFaults(t *testing.T) {
	Test(t, func(*testing.T) store.Store { return &Faulty{Store: Memory()} })
}

// run needs five operations.
func run(ctx context.Context, s store.Store) error {
	if _, err := s.Put(ctx, "index/a", []byte("abc"), store.Condition{}); err != nil {
		return err
	}
	if _, err := s.Get(ctx, "index/a", store.Read{}); err != nil {
		return err
	}
	if err := s.List(ctx, "", func(store.Info) error { return nil }); err != nil {
		return err
	}
	if err := s.Delete(ctx, "index/a"); err != nil {
		return err
	}
	_, err := s.Put(ctx, "index/b", []byte("abc"), store.Condition{})
	return err
}

func TestFaultyFailsEachOnce(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name      string
		fault     func(int, error) func(Call) Fault
		operation int // whether the failed one has happened
	}{{"FailAt", FailAt, 0}, {"LoseAt", LoseAt, 1}, {"FailFrom", FailFrom, 0}} {
		n := 0
		for ; ; n++ {
			behind := &Faulty{Store: Memory()}
			f := &Faulty{Store: behind, Fault: c.fault(n, broken)}
			err := run(t.Context(), f)
			if f.Calls() <= n {
				if err != nil {
					t.Errorf("%s: %v, though nothing was to fail", c.name, err)
				}
				break
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s: with the fault at %d: %v", c.name, n, err)
			}
			if f.Calls() != n+1 || behind.Calls() != n+c.operation {
				t.Errorf("%s: with the fault at %d %d arrived and %d happened", c.name, n, f.Calls(), behind.Calls())
			}
		}
		if n != 5 {
			t.Errorf("%s: %d operations were failed, want 5", c.name, n)
		}
	}
}

func TestFaultyCounts(t *testing.T) {
	f := &Faulty{Store: Memory()}
	if err := run(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	for op, want := range map[Op]int{Get: 1, Put: 2, List: 1, Delete: 1} {
		if got := f.Count(op); got != want {
			t.Errorf("%d %ss, want %d", got, op, want)
		}
	}
}

func TestFaultyHangs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := run(ctx, &Faulty{Store: Memory(), Fault: HangAt(1)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hanging operation returns %v", err)
	}
}

func TestFaultyDelays(t *testing.T) {
	f := &Faulty{Store: Memory(), Fault: func(Call) Fault { return Fault{Delay: 10 * time.Millisecond} }}
	begun := time.Now()
	if err := run(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 50*time.Millisecond {
		t.Errorf("five operations with a delay of 10 ms took %v", took)
	}
}

func TestFaultyDamages(t *testing.T) {
	for _, c := range []struct {
		damage func([]byte) []byte
		want   string
	}{
		{Truncate(2), "ab"},
		{Truncate(0), ""},
		{Truncate(9), "abc"},
		{Truncate(-1), "ab"},
		{Truncate(-9), ""},
		{FlipBit(0), "`bc"},
		{FlipBit(24), "`bc"},
		{FlipBit(17), "aba"},
	} {
		memory := Memory()
		f := &Faulty{Store: memory, Fault: DamageAt(0, c.damage)}
		data := []byte("abc")
		if _, err := f.Put(t.Context(), "a", data, store.Condition{}); err != nil {
			t.Fatal(err)
		}
		if string(data) != "abc" {
			t.Error("the caller's data was changed")
		}
		if o := get(t, f, "a"); string(o.Data) != c.want {
			t.Errorf("a damaged Put stores %q, want %q", o.Data, c.want)
		}

		put(t, memory, "a", []byte("abc"))
		f = &Faulty{Store: memory, Fault: DamageAt(0, c.damage)}
		if o, err := f.Get(t.Context(), "a", store.Read{}); err != nil || string(o.Data) != c.want {
			t.Errorf("a damaged Get returns %q, %v, want %q", o.Data, err, c.want)
		}
		if o := get(t, memory, "a"); string(o.Data) != "abc" {
			t.Errorf("a damaged Get has changed the object to %q", o.Data)
		}
	}
	if got := FlipBit(3)(nil); !bytes.Equal(got, []byte{1}) {
		t.Errorf("nothing with a bit flipped is %v", got)
	}
}
