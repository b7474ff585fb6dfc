package main

import "testing"

func TestQuotedNamesCanBeCopied(t *testing.T) {
	for name, want := range map[string]string{
		"app/main@4f2c": "app/main@4f2c",
		"a b":           "'a b'",
		"it's":          `'it'\''s'`,
		"-f":            "-- -f",
		"-a b":          "-- '-a b'",
		"":              "''",
	} {
		if got := quoted(name); got != want {
			t.Errorf("%q becomes %s, want %s", name, got, want)
		}
	}
}

func TestDollars(t *testing.T) {
	for cost, want := range map[float64]string{
		0: "on Amazon S3 less than $0.0001", 0.00009: "on Amazon S3 less than $0.0001",
		0.0001: "on Amazon S3 about $0.0001", 6.4: "on Amazon S3 about $6.4000",
	} {
		if got := dollars(cost); got != want {
			t.Errorf("%g: %s, want %s", cost, got, want)
		}
	}
}
