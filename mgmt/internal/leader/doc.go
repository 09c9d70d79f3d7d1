// Package leader decides for the cluster: owners of buckets, placement groups, sessions, the states of processes. The core
// is stepped by calls with the time in them and has no goroutine, clock or IO; what it decides is in State, and the
// cluster map is a function of State.
package leader
