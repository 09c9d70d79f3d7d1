package main

import "time"

const (
	// minSizeBytes: reads of 1 MiB need some, and the least drive has 16 MiB.
	minSizeBytes = 16 << 20
	// maxDepth of a job: what one connection may ask at once, and the load's memory holds in answers of 1 MiB.
	maxDepth = 64
	// warmupShare of the time measured goes before, uncounted, at most maxWarmup.
	warmupShare = 0.2
	maxWarmup   = 500 * time.Millisecond
	// startTimeout bounds the start of a drive: its journal is short.
	startTimeout = 30 * time.Second
	// endPatience bounds its orderly end: one checkpoint, on a disk that others use.
	endPatience = 30 * time.Second
	// commandTimeout bounds formatting.
	commandTimeout = 2 * time.Minute
	// pollPause is between two looks whether something has happened.
	pollPause = 5 * time.Millisecond
	// target is what the drive is to reach of fio.
	target = 0.9
	// busyCore: a side that uses this share of its core is what limits.
	busyCore = 0.9
	// topSymbols of a profile are printed.
	topSymbols = 15
	// spareBytes stay free on a filesystem beside a device.
	spareBytes = 256 << 20
)
