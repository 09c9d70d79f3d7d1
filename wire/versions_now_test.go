//go:build !crake_next

package wire

// nextMessages: the messages that only the next version has are in builds of that (zz_next_test.go).
func nextMessages() []Message { return nil }

// goldenEcho: nor can this build make its frames.
func goldenEcho() []byte { return nil }
