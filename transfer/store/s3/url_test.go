package s3_test

import (
	"strings"
	"testing"

	"nbc/transfer/store"
	"nbc/transfer/store/s3"
)

func TestOpen(t *testing.T) {
	awsSettings(t, "id", "secret")
	t.Setenv("AWS_REGION", "eu-central-1")
	for _, url := range []string{
		"s3://bucket", "s3://bucket/", "s3://bucket/prefix", "s3://bucket/a/b/c/", "s3://my.bucket-1_x/p?region=eu-west-1",
		"s3://bucket?endpoint=http://127.0.0.1:9000&path-style=true",
		"s3://bucket?endpoint=https://minio.example/&path-style=false",
		"s3://bucket?endpoint=http%3A%2F%2F127.0.0.1%3A9000",
	} {
		if s, err := s3.Open(t.Context(), url); err != nil {
			t.Errorf("%s: %v", url, err)
		} else if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct{ url, says string }{
		{"s3://", "bucket's name"},
		{"s3:///prefix", "bucket's name"},
		{"s3:bucket", "s3://bucket/prefix"},
		{"http://bucket", "s3://bucket/prefix"},
		{"s3://b", "bucket's name"},
		{"s3://bucket:9000/", "bucket's name"},
		{"s3://KEYID:SECRET@bucket/", "credentials in the URL"},
		{"s3://SECRET@bucket/", "credentials in the URL"},
		{"s3://bucket?endpoint=http://KEYID:SECRET@127.0.0.1", "credentials in the endpoint"},
		{"s3://bucket?secret_key=SECRET", `unknown parameter "secret_key"`},
		{"s3://bucket?Region=eu", `unknown parameter "Region"`},
		{"s3://bucket?region=eu&region=us", "one value"},
		{"s3://bucket?region=", "one value"},
		{"s3://bucket?region", "one value"},
		{"s3://bucket?path-style=yes", "true or false"},
		{"s3://bucket?path-style=TRUE", "true or false"},
		{"s3://bucket?endpoint=127.0.0.1:9000", "endpoint"},
		{"s3://bucket?endpoint=ftp://127.0.0.1", "endpoint"},
		{"s3://bucket?endpoint=http://", "endpoint"},
		{"s3://bucket?endpoint=http://h?x=1", "endpoint"},
		{"s3://bucket/#SECRET", "fragment"},
		{"s3://bucket/a//b", "prefix"},
		{"s3://bucket/../x", "prefix"},
		{"s3://bucket/a%20b", "prefix"},
		{"s3://bucket/" + strings.Repeat("x/", 300), "prefix"},
		{"s3://SECRET%zz@bucket", "escape"},
		{"s3://bucket?region=%zz", "escape"},
	} {
		s, err := s3.Open(t.Context(), c.url)
		if err == nil {
			t.Errorf("%s is accepted", c.url)
			_ = s.Close()
			continue
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", c.url, err, c.says)
		}
		if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("the error repeats a secret: %v", err)
		}
	}
}

func TestRegion(t *testing.T) {
	awsSettings(t, "id", "secret")
	_, err := s3.Open(t.Context(), "s3://bucket")
	if err == nil || !strings.Contains(store.Hint(err), "region=") {
		t.Errorf("without a region: %v, hint %q", err, store.Hint(err))
	}
	for url, endpoint := range map[string]string{
		"s3://bucket?endpoint=http://127.0.0.1:1": "", "s3://bucket": "http://127.0.0.1:1",
	} {
		t.Setenv("AWS_ENDPOINT_URL", endpoint)
		s, err := s3.Open(t.Context(), url)
		if err != nil {
			t.Errorf("%s with AWS_ENDPOINT_URL=%s: %v", url, endpoint, err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
