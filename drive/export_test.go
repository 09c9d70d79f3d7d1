package drive

import (
	"context"

	"github.com/crakefs/crake/drive/internal/image"
)

// CheckReader is Check of what is in memory.
func CheckReader(ctx context.Context, dev image.Reader) (*CheckReport, error) {
	return check(ctx, dev, CheckConfig{Path: "memory"})
}

// InspectReader is Inspect of what is in memory.
func InspectReader(ctx context.Context, dev image.Reader) (*Inspection, error) {
	return inspect(ctx, dev, "memory")
}
