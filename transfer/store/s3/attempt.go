package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"nbc/transfer/store"
)

const credentialsHint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; " +
	"credentials are never part of the store's URL"

// failure is what an attempt has failed with, sorted into the kinds of package store.
type failure struct {
	kind  error // one of store's, or nil
	text  string
	hint  string
	cause error

	retry    bool          // the same request may succeed later
	throttle bool          // the server wants fewer requests
	after    time.Duration // the server asks for this pause
}

func (f *failure) Error() string { return f.text }

func (f *failure) Hint() string { return f.hint }

func (f *failure) Unwrap() []error {
	var list []error
	for _, err := range []error{f.kind, f.cause} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// try calls once until it succeeds, or fails for good, or the attempts are used up. What names the call in the error.
// Once is told how many attempts were before it. One that stalled counts as more than one: it has taken long, and a store
// that accepts connections and says nothing is seldom better the next time.
func (s *Store) try(ctx context.Context, what string, once func(ctx context.Context, before int) error) error {
	left := s.attempts()
	for n := 1; ; n++ {
		err := s.checkCredentials(ctx)
		if err == nil {
			err = once(ctx, n-1)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s %s: %w", what, s.location, context.Cause(ctx))
		}
		f := s.sort(err)
		stall := stalled(err)
		if stall {
			left -= s.stallCosts()
		} else {
			left--
		}
		if !f.retry || left <= 0 {
			if stall {
				s.silent.Store(true)
			}
			if n > 1 {
				f.text = fmt.Sprintf("%s (attempt %d)", f.text, n)
			}
			f.text = fmt.Sprintf("%s %s: %s", what, s.location, f.text)
			return f
		}
		timer := time.NewTimer(s.pause(n, f))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s %s: %w, after attempt %d: %s", what, s.location, context.Cause(ctx), n, f.text)
		}
	}
}

// stalled says whether nothing came, of the store or of the network before it.
func stalled(err error) bool {
	var send *smithyhttp.RequestSendError
	var timeout net.Error
	return errors.As(err, new(*idleError)) ||
		errors.As(err, &send) && errors.As(send.Err, &timeout) && timeout.Timeout() // nobody was there to connect to
}

const (
	// firstPause follows the first attempt, the next ones are twice as long each. Its half is random, so that 64
	// requests that failed together do not come again together.
	firstPause = 100 * time.Millisecond
	// throttledPause is for servers that want fewer requests.
	throttledPause = 500 * time.Millisecond
)

func (s *Store) pause(n int, f *failure) time.Duration {
	pause := firstPause
	if f.throttle {
		pause = throttledPause
	}
	pause = min(pause<<min(n-1, 16), s.maxBackoff())
	pause = pause/2 + rand.N(pause/2+1) // no secret
	return min(max(pause, f.after), s.maxBackoff())
}

// sort says what an error of the SDK, or of reading a body, means.
func (s *Store) sort(err error) *failure {
	var done *failure
	if errors.As(err, &done) {
		return done
	}
	if errors.Is(err, store.ErrTooLarge) {
		return &failure{kind: store.ErrTooLarge, text: err.Error()}
	}
	var noCredentials *credentialsError
	if errors.As(err, &noCredentials) {
		return sortCredentials(noCredentials)
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		status, header := 0, http.Header{}
		text := fmt.Sprintf("%s: %s", api.ErrorCode(), api.ErrorMessage())
		var resp *awshttp.ResponseError
		if errors.As(err, &resp) {
			status, header = resp.HTTPStatusCode(), resp.Response.Header
			text = fmt.Sprintf("%d %s", status, text)
			if resp.RequestID != "" {
				text += " (request " + resp.RequestID + ")"
			}
		}
		f := s.sortReply(status, api.ErrorCode(), header)
		f.text, f.cause = text, err
		return f
	}
	return s.sortTransport(err)
}

// sortReply sorts what the server has said. The status is 0 for one key of a multi-object delete.
func (s *Store) sortReply(status int, code string, header http.Header) *failure {
	switch code {
	case "NoSuchKey":
		return &failure{kind: store.ErrNotExist}
	case "NoSuchBucket":
		// Not ErrNotExist: an object that is absent is a miss, and a store that was never there is a mistake.
		return &failure{kind: store.ErrRefused, hint: fmt.Sprintf("create the bucket %q, or check %s",
			s.location.bucket, s.whereHint())}
	case "InvalidBucketName":
		return &failure{kind: store.ErrRefused, hint: fmt.Sprintf("no bucket can be named %q: check %s",
			s.location.bucket, s.whereHint())}
	case "PreconditionFailed", "ConditionalRequestConflict":
		return &failure{kind: store.ErrConflict}
	case "NotImplemented":
		return &failure{kind: errors.ErrUnsupported}
	case "RequestTimeTooSkewed":
		// The SDK has learned the server's time from this reply and signs the next request by that.
		return &failure{kind: store.ErrRefused, retry: true, hint: "check this machine's clock"}
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return &failure{hint: s.regionHint(header)}
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AccessDenied", "InvalidAccessKeyId", "AccountProblem",
		"SignatureDoesNotMatch", "AllAccessDisabled", "InvalidSecurity", "NotSignedUp", "UnauthorizedAccess":
		return &failure{kind: store.ErrRefused, hint: refusedHint(code)}
	case "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
		"BandwidthLimitExceeded":
		return &failure{kind: store.ErrUnavailable, retry: true, throttle: true, after: retryAfter(header)}
	case "RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody", "BadDigest", "OperationAborted",
		"XAmzContentSHA256Mismatch", "InvalidDigest", "ContentSHA256Mismatch":
		return &failure{kind: store.ErrUnavailable, retry: true, after: retryAfter(header)}
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return &failure{kind: store.ErrRefused, hint: refusedHint(code)}
	case status == http.StatusPreconditionFailed:
		return &failure{kind: store.ErrConflict}
	case status == http.StatusNotImplemented:
		return &failure{kind: errors.ErrUnsupported}
	case status == http.StatusNotFound:
		// S3 would have said NoSuchKey or NoSuchBucket.
		return &failure{kind: store.ErrUnavailable, hint: "check that the endpoint is an S3 server"}
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return &failure{kind: store.ErrUnavailable, retry: true, throttle: true, after: retryAfter(header)}
	case status >= 500 || status == http.StatusRequestTimeout || status == http.StatusConflict:
		return &failure{kind: store.ErrUnavailable, retry: true, after: retryAfter(header)}
	case status >= 300 && status < 400:
		return &failure{hint: s.regionHint(header)}
	}
	return &failure{}
}

func refusedHint(code string) string {
	if code == "AccessDenied" || code == "Forbidden" {
		return "check what the credentials allow; without s3:ListBucket on the bucket S3 says this of an absent object too"
	}
	return "check the credentials"
}

// whereHint names what leads to a bucket, as far as the URL says it.
func (s *Store) whereHint() string {
	region, endpoint := "the region", "the endpoint"
	if s.location.region != "" {
		region += " " + s.location.region
	}
	if s.location.endpoint != "" {
		endpoint += " " + s.location.endpoint
	}
	return "its name, " + region + " and " + endpoint
}

func (s *Store) regionHint(header http.Header) string {
	if region := header.Get("X-Amz-Bucket-Region"); region != "" {
		return fmt.Sprintf("the bucket is in the region %s: add region=%s to the store's URL", region, region)
	}
	if elsewhere := header.Get("Location"); elsewhere != "" {
		return fmt.Sprintf("the server points to %q, which is not followed: check the region and the endpoint", elsewhere)
	}
	return "check the region and the endpoint"
}

func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func sortCredentials(err *credentialsError) *failure {
	var operation *smithy.OperationError
	var send *smithyhttp.RequestSendError
	// Not to reach the service that gives out credentials is an outage. But the last link of the chain asks a machine
	// of EC2 for its role, which is unreachable wherever it does not exist.
	if errors.As(err, &operation) && operation.ServiceID != "ec2imds" && errors.As(err, &send) {
		return &failure{kind: store.ErrUnavailable, retry: true, text: err.Error(), cause: err}
	}
	return &failure{kind: store.ErrRefused, text: err.Error(), hint: credentialsHint, cause: err}
}

// sortTransport sorts errors without a reply, or with one that is no reply of an S3 server.
func (s *Store) sortTransport(err error) *failure {
	f := &failure{kind: store.ErrUnavailable, text: err.Error(), cause: err}
	var send *smithyhttp.RequestSendError
	var resp *smithyhttp.ResponseError
	var body *bodyError
	var garbled *smithy.DeserializationError
	switch {
	case errors.As(err, &send):
		f.text = send.Err.Error()
		f.retry, f.hint = sortConnection(send.Err)
	case errors.As(err, &body):
		f.text = body.Error()
		f.retry = true
	case errors.As(err, &resp):
		// An error's or a listing's body that is not XML: of a proxy, or cut off.
		status := resp.HTTPStatusCode()
		f = s.sortReply(status, "", resp.Response.Header)
		f.text = fmt.Sprintf("%d and no reply of an S3 server: %v", status, resp.Err)
		f.cause = err
		if status < 300 {
			f.kind, f.retry = store.ErrUnavailable, true
		}
		if f.hint == "" {
			f.hint = "check that the endpoint is an S3 server"
		}
	case errors.As(err, &garbled):
		f.retry = true
	default:
		// The SDK could not make a request of it.
		f.kind = nil
	}
	return f
}

// sortConnection says whether another attempt may go better.
func sortConnection(err error) (retry bool, hint string) {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return false, "check the endpoint, the region and the bucket's name: one of them is part of this host's name"
	}
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate), errors.As(err, &authority), errors.As(err, &host):
		return false, "name the certificate authority's file by AWS_CA_BUNDLE, or check the endpoint"
	case errors.As(err, &record):
		return false, "the endpoint does not speak TLS: use http://"
	}
	return true, ""
}

// bodyError says that a reply could not be read to its end, or is not what it said it would be.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }
