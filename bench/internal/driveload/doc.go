// Package driveload drives one drive over the wire, as a compute and a frontend would, and measures it: random and sequential
// reads of strips that it has put there, Puts of strips, Appends to segments. What it reads it compares with what it wrote.
//
// A Session prepares the strips to read (Prepare), then runs Jobs as often as wanted; each leaves the drive as it was. Workers are
// goroutines, one for each request at once, all on one connection, as the requests of one peer are.
//
// The bytes of a strip follow from its number (content.go), so nothing needs to be kept to compare with.
package driveload
