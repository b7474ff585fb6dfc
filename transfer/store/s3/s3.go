// Package s3 is the store in an S3 bucket, of AWS or of a server like it: MinIO, Ceph, R2, versitygw.
//
// [Open] takes the bucket and its settings from a URL and the credentials from the AWS credential chain. Every call is
// made of attempts. An attempt fails when the server says so, when the connection breaks, when the reply is not what it
// says it is, or when no byte has moved in either direction for [Store.IdleTimeout], however slow the rest was. If it
// makes sense another one follows, after a pause that grows; the reading of the body is part of the attempt. There is
// no limit of time for a whole call: that is its context's.
//
// A late duplicate: an attempt that was given up may reach the bucket after the one that followed it, and even after
// another writer's Put. S3 has no defence but a [store.Condition].
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"nbc/transfer/store"
)

const (
	// DefaultIdleTimeout is longer than any server takes to begin with its reply, and than a packet that was lost five
	// times is sent again.
	DefaultIdleTimeout = 15 * time.Second
	// silentTimeout is for a store that has let a whole call stall and not answered since: it is asked again, but a build
	// does not pay for it a second time.
	silentTimeout = 5 * time.Second
	// DefaultAttempts are over after 3 to 4 seconds where the connection is refused: a build should begin cold soon.
	DefaultAttempts = 6
	// DefaultMaxBackoff is what the AWS tools wait at most.
	DefaultMaxBackoff = 20 * time.Second
)

// Store keeps objects in a bucket. [Open] makes one; Close ends it. The fields may be set before the first call.
type Store struct {
	// IdleTimeout ends an attempt in which no byte has moved for so long; 0 means DefaultIdleTimeout.
	IdleTimeout time.Duration
	// Attempts is how often a request is sent at most; 0 means DefaultAttempts. One that stalled counts as two, as three
	// as long as the store has never answered, and as all of them when a call before has failed so.
	Attempts int
	// MaxBackoff bounds the pause between two attempts, also one that the server asks for; 0 means DefaultMaxBackoff.
	MaxBackoff time.Duration

	location    location
	client      *awss3.Client
	credentials aws.CredentialsProvider
	transport   *http.Transport
	// answered says that a reply has come, and silent that a call has failed since the last one because nothing came.
	answered, silent atomic.Bool
}

var _ store.Store = (*Store)(nil)

// Open returns the store at a URL like
//
//	s3://bucket/prefix?region=eu-central-1&endpoint=https://minio.example:9000&path-style=true
//
// where everything but the bucket may be left out. The region is then that of the AWS settings (AWS_REGION, profile),
// or us-east-1 if there is none and an endpoint is given. Path-style is how most servers other than AWS want requests:
// the bucket in the path and not in the host's name. Credentials in the URL, and parameters that are not known, are
// refused. Open reads the AWS settings but sends nothing.
func Open(ctx context.Context, rawURL string) (*Store, error) {
	l, err := parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("store's URL: %w", err)
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, fmt.Errorf("loading the AWS settings: %w", err)
	}
	s := &Store{location: l, credentials: cfg.Credentials, transport: newTransport(cfg.HTTPClient)}
	s.client = awss3.NewFromConfig(cfg, func(o *awss3.Options) {
		if l.region != "" {
			o.Region = l.region
		}
		if l.endpoint != "" {
			o.BaseEndpoint = aws.String(l.endpoint)
		}
		if o.Region == "" && o.BaseEndpoint != nil {
			o.Region = "us-east-1" // what servers other than AWS expect, or do not care about
		}
		o.UsePathStyle = l.pathStyle
		o.HTTPClient = &watchedClient{store: s}
		// Retrying is done here: the SDK's covers a request until its headers, and gives up on all together.
		o.Retryer = aws.NopRetryer{}
		o.RetryMaxAttempts = 0
		// The SDK's own checksums are unknown to many servers. Content is hashed by nbc, and signed by SHA-256 anyway.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	if s.client.Options().Region == "" {
		return nil, &failure{
			text: fmt.Sprintf("store %s: no region", l),
			hint: "add region=… to the store's URL, or set AWS_REGION",
		}
	}
	return s, nil
}

// Close closes the idle connections. No call may be under way.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

func (s *Store) idleTimeout() time.Duration {
	limit := s.IdleTimeout
	if limit <= 0 {
		limit = DefaultIdleTimeout
	}
	if s.silent.Load() {
		limit = min(limit, silentTimeout)
	}
	return limit
}

// stallCosts returns how many attempts one that has stalled counts as.
func (s *Store) stallCosts() int {
	switch {
	case s.silent.Load():
		return s.attempts()
	case !s.answered.Load():
		return 3
	}
	return 2
}

// replied notes that the store has answered.
func (s *Store) replied() {
	s.answered.Store(true)
	s.silent.Store(false)
}

func (s *Store) attempts() int {
	if s.Attempts > 0 {
		return s.Attempts
	}
	return DefaultAttempts
}

func (s *Store) maxBackoff() time.Duration {
	if s.MaxBackoff > 0 {
		return s.MaxBackoff
	}
	return DefaultMaxBackoff
}

// checkCredentials returns an error if there are no credentials to sign a request with. They are kept until they
// expire.
func (s *Store) checkCredentials(ctx context.Context) error {
	_, err := s.credentials.Retrieve(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &credentialsError{err}
}

// credentialsError says that no credentials are to be had.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return fmt.Sprintf("no credentials: %v", e.err) }
func (e *credentialsError) Unwrap() error { return e.err }

// key returns the name of an object in the bucket.
func (s *Store) key(key string) *string { return aws.String(s.location.prefix + key) }

// bucket returns the bucket's name.
func (s *Store) bucket() *string { return aws.String(s.location.bucket) }

// check refuses what no request should be made of.
func check(ctx context.Context, errs ...error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}
