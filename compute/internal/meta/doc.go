// Package meta is the bucket engine: a Pebble database with the records of a part of the filesystem, and every operation
// on them.
package meta
