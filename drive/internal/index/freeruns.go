package index

// FreeRuns calls f for every stretch of free blocks, in order: for reports, as it looks at the whole bitmap.
func (a *Allocator) FreeRuns(f func(start, blocks uint64)) {
	for from := uint64(0); from < a.blocks; {
		start := a.nextFree(from, a.blocks)
		if start == a.blocks {
			return
		}
		from = a.nextUsed(start, a.blocks)
		f(start, from-start)
	}
}
