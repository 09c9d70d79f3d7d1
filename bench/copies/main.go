// Command copies measures what moves the bytes of a file through a one-server cluster: how many are copied where, by whom, and what
// processor time that takes, with data through unix sockets and by shared memory. Its binary must count (make bench-copies).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/crakefs/crake/bench/internal/copyload"
	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/bench/internal/machine"
)

func main() {
	wires := flag.String("wire", "unix,shm", "the ways to pass data that are compared: dev up --wire; default: that of dev up")
	mib := flag.Int("mib", 256, "length of the file in MiB")
	flag.Parse()
	fmt.Printf("kernel %s, %d CPUs (%s)\n\n", machine.Kernel(), runtime.NumCPU(), machine.Model())
	for _, wire := range strings.Split(*wires, ",") {
		if err := run(os.Getenv("CRAKE_BIN"), wire, *mib); err != nil {
			fmt.Fprintln(os.Stderr, "copies:", err)
			os.Exit(1)
		}
	}
}

func run(bin, wire string, mib int) (err error) {
	if bin == "" {
		return errors.New("CRAKE_BIN names no binary; use make bench-copies")
	}
	o := devcluster.Options{DriveSize: "1GiB"}
	if wire != "default" {
		o.Flags = []string{"--wire", wire}
	}
	c, err := devcluster.New(bin, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Up(); err != nil {
		return err
	}
	path := filepath.Join(c.Mount, "f")
	if err := copyload.Warm(c.Mount); err != nil {
		return err
	}
	for _, p := range []struct {
		what string
		run  func() error
	}{
		{"buffered writes of 1 MiB, fsync", func() error { return copyload.Write(path, mib, os.O_TRUNC) }},
		{"reads of 1 MiB", func() error { return copyload.Read(path, mib, 0) }},
	} {
		if err := copyload.DropCaches(); err != nil {
			return err
		}
		cost, err := copyload.Phase(c, p.run)
		if err != nil {
			return err
		}
		cost.Print(os.Stdout, wire+": "+p.what, int64(mib)<<20)
	}
	return nil
}
