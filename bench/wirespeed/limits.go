package main

import "time"

const (
	// target is what a small request and its answer may take, in bare exchanges of the same bytes.
	target = 1.5
	// warmupShare of the time measured goes before, uncounted: long enough for a spinner to learn.
	warmupShare = 0.2
	// startTimeout bounds the start of the answering side.
	startTimeout = 10 * time.Second
	// endPatience bounds its end.
	endPatience = 5 * time.Second
	// pollPause is between two looks whether it answers.
	pollPause = 2 * time.Millisecond
	// arenaBytes of each side; one request at a time needs far less.
	arenaBytes = 16 << 20
	// maxBareBytes bounds what a bare peer asks for.
	maxBareBytes = 64 << 10
)
