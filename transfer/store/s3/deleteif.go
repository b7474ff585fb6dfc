package s3

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"nbc/transfer/store"
)

// DeleteIf removes the object at key if it has that version; else the error is [store.ErrConflict]. That there is none
// is no error. Amazon S3 knows this since September 2025. Other servers may ignore the condition, or look at it first
// and delete then (versitygw 1.8.0 does): try it out before.
func (s *Store) DeleteIf(ctx context.Context, key, version string) error {
	if err := check(ctx, store.CheckKey(key)); err != nil {
		return err
	}
	err := s.try(ctx, "deleting "+key+" from", func(ctx context.Context, _ int) error {
		_, err := s.client.DeleteObject(ctx, &awss3.DeleteObjectInput{
			Bucket: s.bucket(), Key: s.key(key), IfMatch: aws.String(`"` + version + `"`),
		})
		return err
	})
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	return err
}
