//go:build crake_next

package wire

// goldenEcho is a request of the method that the next version adds.
func goldenEcho() []byte {
	meta := (&NextEcho{From: 7, Text: "echo", Marks: []Next{{From: 1, Mark: 2}, {}}}).Append(nil)
	h := Header{Kind: FrameRequest, Method: MNextEcho, ID: 9, Generation: 4, MetaBytes: uint32(len(meta)), DeadlineMs: 10_000}
	b := make([]byte, HeaderBytes)
	h.Encode(b, meta)
	return append(b, meta...)
}
