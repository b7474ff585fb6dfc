package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"nbc/transfer/store"
)

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if err := check(ctx, store.CheckKey(key), r.Check()); err != nil {
		return store.Object{}, err
	}
	var o store.Object
	err := s.try(ctx, "getting "+key+" from", func(ctx context.Context, _ int) (err error) {
		o, err = s.get(ctx, key, r)
		return err
	})
	if err != nil {
		return store.Object{}, err
	}
	return o, nil
}

func (s *Store) get(ctx context.Context, key string, r store.Read) (o store.Object, err error) {
	in := &awss3.GetObjectInput{Bucket: s.bucket(), Key: s.key(key), Range: byteRange(r)}
	out, err := s.client.GetObject(ctx, in)
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) && resp.HTTPStatusCode() == http.StatusRequestedRangeNotSatisfiable && in.Range != nil {
		return s.beyond(ctx, key, r)
	}
	if err != nil {
		return o, err
	}
	defer func() { _ = out.Body.Close() }() // it was read to its end, or an error is returned anyway
	if o.Version, err = version(out.ETag); err != nil {
		return o, err
	}
	if out.ContentLength == nil {
		return readUnknown(o, out.Body, r, in.Range != nil)
	}

	// A server that does not know ranges sends the whole object: what is asked for begins later.
	length, skip := *out.ContentLength, int64(0)
	o.Size = length
	if out.ContentRange != nil {
		var first, last int64
		if _, err := fmt.Sscanf(*out.ContentRange, "bytes %d-%d/%d", &first, &last, &o.Size); err != nil {
			return o, &bodyError{fmt.Errorf("content range %q: %w", *out.ContentRange, err)}
		}
		if first != r.Offset || last-first+1 != length || last >= o.Size {
			return o, &bodyError{fmt.Errorf("content range %q with %d bytes, for range %q", *out.ContentRange, length,
				aws.ToString(in.Range))}
		}
	}
	offset, n, err := r.Span(o.Size)
	if err != nil {
		return o, err
	}
	if out.ContentRange == nil {
		skip = offset
	} else if n != length {
		return o, &bodyError{fmt.Errorf("content range %q, for range %q", *out.ContentRange, aws.ToString(in.Range))}
	}
	if _, err := io.CopyN(io.Discard, out.Body, skip); err != nil {
		return o, &bodyError{fmt.Errorf("after less than %d of %d bytes: %w", skip, length, noEOF(err))}
	}
	o.Data = make([]byte, n)
	if k, err := io.ReadFull(out.Body, o.Data); err != nil {
		return store.Object{}, &bodyError{fmt.Errorf("after %d of %d bytes: %w", skip+int64(k), length, noEOF(err))}
	}
	return o, nil
}

// readUnknown reads an object whose length the server does not tell.
func readUnknown(o store.Object, body io.Reader, r store.Read, part bool) (store.Object, error) {
	if part {
		return o, &bodyError{errors.New("a part of an object without a length")}
	}
	data, err := io.ReadAll(io.LimitReader(body, r.Limit()+1))
	if err != nil {
		return o, &bodyError{fmt.Errorf("after %d bytes: %w", len(data), noEOF(err))}
	}
	o.Data, o.Size = data, int64(len(data))
	_, _, err = r.Span(o.Size)
	return o, err
}

// noEOF is err, but never io.EOF, which would read like success.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// byteRange returns r as a header, nil if it asks for everything.
func byteRange(r store.Read) *string {
	switch {
	case r.Offset == 0 && r.Length == 0:
		return nil
	case r.Length == 0 || r.Length > math.MaxInt64-r.Offset:
		return aws.String(fmt.Sprintf("bytes=%d-", r.Offset))
	}
	return aws.String(fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1))
}

// beyond returns the object without data, since it ends before what r asks for. The reply that said so tells neither
// its version nor, from all servers, its size.
func (s *Store) beyond(ctx context.Context, key string, r store.Read) (o store.Object, err error) {
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: s.bucket(), Key: s.key(key)})
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "NotFound" { // HEAD has no body to say NoSuchKey in
		return o, &failure{kind: store.ErrNotExist, text: "it was deleted just now", cause: err}
	}
	if err != nil {
		return o, err
	}
	if o.Version, err = version(out.ETag); err != nil {
		return o, err
	}
	o.Size = aws.ToInt64(out.ContentLength)
	if o.Size > r.Offset {
		return o, &bodyError{errors.New("it was replaced just now")}
	}
	return o, nil
}

// version returns an ETag without its quotes, which some servers leave out in some places.
func version(tag *string) (string, error) {
	v := strings.Trim(strings.TrimPrefix(aws.ToString(tag), "W/"), `"`)
	if v == "" {
		return "", &bodyError{errors.New("no ETag in the reply")}
	}
	return v, nil
}

// Put implements [store.Store].
//
// If the reply to an attempt is lost, the next one may find its own object, and its condition not met because of that.
// So when that happens after the first attempt, the object is read, and if it is what was to be put then it was put. It
// could also be another writer's who put the same bytes under the same condition: to whom it matters who of them was
// first must put something of their own into the object.
func (s *Store) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if err := check(ctx, store.CheckKey(key), c.Check()); err != nil {
		return "", err
	}
	var v string
	err := s.try(ctx, "putting "+key+" to", func(ctx context.Context, before int) (err error) {
		v, err = s.put(ctx, key, data, c)
		if err == nil || c == (store.Condition{}) {
			return err
		}
		f := s.sort(err)
		if errors.Is(f, store.ErrNotExist) { // some servers answer so when a version is asked for
			f.kind = store.ErrConflict
		}
		if errors.Is(f, store.ErrConflict) && before > 0 {
			if v, err = s.holds(ctx, key, data); err != nil || v != "" {
				return err
			}
		}
		return f
	})
	if err != nil {
		return "", err
	}
	return v, nil
}

func (s *Store) put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	in := &awss3.PutObjectInput{Bucket: s.bucket(), Key: s.key(key), Body: bytes.NewReader(data)}
	if c.IfAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	if c.IfVersion != "" {
		in.IfMatch = aws.String(`"` + c.IfVersion + `"`)
	}
	out, err := s.client.PutObject(ctx, in)
	if err != nil {
		return "", err
	}
	return version(out.ETag)
}

// holds returns the version of the object at key if it is data, and "" if it is something else.
func (s *Store) holds(ctx context.Context, key string, data []byte) (string, error) {
	o, err := s.get(ctx, key, store.Read{Max: max(1, int64(len(data)))})
	if err != nil {
		f := s.sort(err)
		if errors.Is(f, store.ErrNotExist) || errors.Is(f, store.ErrTooLarge) {
			return "", nil
		}
		return "", f
	}
	if !bytes.Equal(o.Data, data) {
		return "", nil
	}
	return o.Version, nil
}

// List implements [store.Store]. It passes over objects whose names are no keys: they are not nbc's.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	if err := check(ctx); err != nil {
		return err
	}
	what := "listing " + prefix + "* in"
	last := ""
	var token *string
	for {
		var page *awss3.ListObjectsV2Output
		err := s.try(ctx, what, func(ctx context.Context, _ int) (err error) {
			page, err = s.client.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{
				Bucket: s.bucket(), Prefix: s.key(prefix), ContinuationToken: token,
			})
			if err == nil && len(page.Contents) == 0 && page.Name == nil && page.IsTruncated == nil {
				// Whatever this is a reply to, it does not say that there is nothing.
				return &bodyError{errors.New("no listing in the reply")}
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, entry := range page.Contents {
			key, ok := strings.CutPrefix(aws.ToString(entry.Key), s.location.prefix)
			if !ok || !strings.HasPrefix(key, prefix) || store.CheckKey(key) != nil {
				continue
			}
			if key <= last {
				return fmt.Errorf("%s %s: the server names %s after %s, which is not in order", what, s.location, key, last)
			}
			last = key
			info := store.Info{Key: key, Size: aws.ToInt64(entry.Size), Modified: aws.ToTime(entry.LastModified)}
			if info.Version, err = version(entry.ETag); err != nil {
				return fmt.Errorf("%s %s: %s: %w", what, s.location, key, err)
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s %s: %w", what, s.location, context.Cause(ctx))
			}
			if err := yield(info); err != nil {
				return err
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return check(ctx)
		}
		next := aws.ToString(page.NextContinuationToken)
		if next == "" || next == aws.ToString(token) {
			return fmt.Errorf("%s %s: the server does not say how to go on after %s", what, s.location, last)
		}
		token = &next
	}
}

// maxDelete is how many keys S3 takes in one request.
const maxDelete = 1000

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	if err := check(ctx); err != nil {
		return err
	}
	for _, key := range keys {
		if err := store.CheckKey(key); err != nil {
			return err
		}
	}
	for len(keys) > 0 {
		n := min(len(keys), maxDelete)
		if err := s.deleteSome(ctx, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (s *Store) deleteSome(ctx context.Context, keys []string) error {
	left := make([]types.ObjectIdentifier, len(keys))
	for i, key := range keys {
		left[i].Key = s.key(key)
	}
	what := fmt.Sprintf("deleting %d objects, first %s, in", len(keys), keys[0])
	return s.try(ctx, what, func(ctx context.Context, _ int) error {
		out, err := s.client.DeleteObjects(ctx, &awss3.DeleteObjectsInput{
			Bucket: s.bucket(), Delete: &types.Delete{Objects: left, Quiet: aws.Bool(true)},
		}, byContentMD5)
		if err != nil {
			return err
		}
		// What is left are those for which there was an error. One that will not go better next time ends it.
		left = left[:0:0]
		var worst *failure
		for _, e := range out.Errors {
			f := s.sortReply(0, aws.ToString(e.Code), http.Header{})
			if errors.Is(f, store.ErrNotExist) {
				continue
			}
			key := aws.ToString(e.Key)
			f.text = fmt.Sprintf("%s: %s: %s", strings.TrimPrefix(key, s.location.prefix), aws.ToString(e.Code),
				aws.ToString(e.Message))
			left = append(left, types.ObjectIdentifier{Key: aws.String(key)})
			if worst == nil || worst.retry && !f.retry {
				worst = f
			}
		}
		if worst == nil {
			return nil
		}
		if len(left) > 1 {
			worst.text += fmt.Sprintf(", and %d more were not deleted", len(left)-1)
		}
		return worst
	})
}

// byContentMD5 protects the body of a request by the header that S3 has always had, instead of by the SDK's newer
// checksums: a multi-object delete must have one, and many servers know no other.
func byContentMD5(o *awss3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		if _, err := stack.Finalize.Remove("AWSChecksum:ComputeInputPayloadChecksum"); err != nil {
			return fmt.Errorf("leaving out the SDK's checksum: %w", err)
		}
		return smithyhttp.AddContentChecksumMiddleware(stack)
	})
}
