// Package arenas has the test that memory for data never closes a circle of waits: real drives and computes and the memory of frontends, all in
// one process, each with the smallest arena that its role takes, under more load than fits. wire/arena.go says why it holds.
package arenas
