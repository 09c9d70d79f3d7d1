// Package lint holds the rules of the source tree as a Go test, so that `go test ./...` enforces them and no other tool
// is needed. It has no code outside of its test.
package lint
