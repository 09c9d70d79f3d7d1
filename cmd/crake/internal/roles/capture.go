package roles

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/wire/capture"
)

// captureFlag is the flag --wire-capture, for what a process says before anybody can look at it by crake wire capture.
type captureFlag struct{ path string }

func (c *captureFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.path, "wire-capture", "", "write all frames to this file, up to 256 MiB; crake wire dump prints it")
	if err := cmd.Flags().MarkHidden("wire-capture"); err != nil {
		panic(err) // the flag has just been made
	}
}

// socketPath gives the socket for those who look; "" where the process listens at no unix socket.
func socketPath(listen []string) string {
	for _, a := range listen {
		if path := capture.SocketPath(a); path != "" {
			return path
		}
	}
	return ""
}

// during gives run with people able to look at the frames: by a socket beside the first one that the process listens at, and in the file
// that was asked for. That none of it can be had is logged, and no reason not to run.
func (c *captureFlag) during(tap *capture.Tap, listen []string, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		lctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // until the last goodbye is said
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		log := logger()
		if path := socketPath(listen); path != "" {
			wg.Go(func() {
				if err := tap.Serve(lctx, path, log); err != nil {
					log.Warn("nobody can look at the frames", "path", path, "err", err)
				}
			})
		}
		if c.path != "" {
			wg.Go(func() {
				if err := tap.File(lctx, c.path); err != nil {
					log.Warn("the capture has ended", "path", c.path, "err", err)
				}
			})
		}
		return run(ctx)
	}
}
