package chunk

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// FrameSize returns how many plain bytes stored says it holds. It returns an error unless stored is exactly one zstd
// frame with that size in its header and without a dictionary: nothing before it, nothing cut off, nothing after it.
// It reads only the headers of the frame and its blocks, so that a caller can refuse a size before it allocates for
// it. Whether the blocks really hold that many bytes is for a decoder to find out.
func FrameSize(stored []byte) (uint64, error) {
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return 0, fmt.Errorf("reading a zstd header: %w", err)
	}
	switch {
	case h.Skippable:
		return 0, errors.New("a skippable zstd frame")
	case h.DictionaryID != 0:
		return 0, errors.New("a zstd frame with a dictionary")
	case !h.HasFCS:
		return 0, errors.New("a zstd frame without its size")
	}
	rest := stored[h.HeaderSize:]
	for last := false; !last; {
		if len(rest) < 3 {
			return 0, errors.New("a zstd frame that is cut off")
		}
		block := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		last = block&1 != 0
		size := block >> 3
		switch block >> 1 & 3 {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return 0, errors.New("a zstd block of an unknown type")
		}
		if size > len(rest)-3 {
			return 0, errors.New("a zstd frame that is cut off")
		}
		rest = rest[3+size:]
	}
	sum := 0
	if h.HasCheckSum {
		sum = 4
	}
	if len(rest) != sum {
		return 0, fmt.Errorf("%d bytes after a zstd frame", len(rest)-sum)
	}
	return h.FrameContentSize, nil
}
