package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestOpCtx: the ctx ends for each of its reasons, whether somebody waited before or asks later; and children end with it.
func TestOpCtx(t *testing.T) {
	reasons := map[string]func(bucket, session context.CancelFunc, c *opCtx){
		"bucket":   func(b, _ context.CancelFunc, _ *opCtx) { b() },
		"session":  func(_, s context.CancelFunc, _ *opCtx) { s() },
		"over":     func(_, _ context.CancelFunc, c *opCtx) { c.end() },
		"deadline": func(context.CancelFunc, context.CancelFunc, *opCtx) { time.Sleep(2 * time.Second) },
	}
	for name, end := range reasons {
		for _, early := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				bucket, b := context.WithCancel(context.Background())
				session, s := context.WithCancel(context.Background())
				defer b()
				defer s()
				c := &opCtx{bucket: bucket, session: session, deadline: time.Now().Add(time.Second)}
				var child context.Context
				if early {
					var cancel context.CancelFunc
					child, cancel = context.WithCancel(c)
					defer cancel()
				}
				if c.Err() != nil {
					t.Fatalf("%s: ended at the start: %v", name, c.Err())
				}
				end(b, s, c)
				synctest.Wait()
				want := context.Canceled
				if name == "deadline" {
					want = context.DeadlineExceeded
				}
				if c.Err() != want {
					t.Errorf("%s, early %v: %v", name, early, c.Err())
				}
				<-c.Done()
				if early {
					<-child.Done()
				}
				if c.Err() != want {
					t.Errorf("%s, early %v, after Done: %v", name, early, c.Err())
				}
				c.end()
			})
		}
	}
}
