package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spawn starts the process of a spec in a session of its own, pinned to its cores, with its output appended to log. The
// child has nothing to do with our end: no signal at our death, and its files are its own.
func spawn(spec *Spec, log *os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/", // no folder is kept busy
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	argv := append([]string{spec.Binary}, spec.Args...)
	if len(spec.Cores) == 0 {
		return syscall.ForkExec(spec.Binary, argv, attr)
	}
	// A child inherits the affinity of the thread that forks, so this thread takes it on for a moment.
	runtime.LockOSThread()
	var old, want unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, c := range spec.Cores {
		want.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("cannot pin to cores %v: %w", spec.Cores, err)
	}
	pid, err = syscall.ForkExec(spec.Binary, argv, attr)
	if e := unix.SchedSetaffinity(0, &old); e == nil {
		runtime.UnlockOSThread()
	} // else the thread stays locked, and ends with this goroutine instead of serving others from the wrong core
	return pid, err
}

// record is run/NAME.json: which process runs under a name.
type record struct {
	Name      string    `json:"name"`
	PID       int       `json:"pid"`
	Start     uint64    `json:"start_ticks"` // since boot
	Boot      string    `json:"boot_id"`
	StartedAt time.Time `json:"started_at"`
	LogOffset int64     `json:"log_offset"` // where its output begins
	Cores     []int     `json:"cores"`
	Binary    string    `json:"binary"`
}

func recordPath(dir, name string) string { return filepath.Join(dir, name+".json") }

// writeRecord writes the record whole or not at all. It need not outlive the machine, so it is not synced.
func writeRecord(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := recordPath(dir, r.Name) + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, recordPath(dir, r.Name))
}

// readRecord gives the record of a name; false when there is none, it makes no sense, or it is of another boot.
func readRecord(dir, name string) (*record, bool) {
	f, err := os.Open(recordPath(dir, name))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, false
	}
	var r record
	if json.Unmarshal(b, &r) != nil || r.Name != name || r.PID <= 0 || r.Boot != bootID() {
		return nil, false
	}
	return &r, true
}

func openLog(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, at, nil
}

// lastWords gives the last line of a log after an offset, for people.
func lastWords(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	if st.Size() < from {
		from = 0 // it was cut since
	}
	at := max(from, st.Size()-8<<10)
	b, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, at, st.Size()-at), 8<<10))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	l := strings.ToValidUTF8(strings.TrimSpace(lines[len(lines)-1]), "?")
	return l[:min(len(l), maxLastWords)]
}

// BoundLog moves the content of a log that has grown too long to NAME.log.1. The process keeps its file open for append,
// so the file is copied and cut; lines written in between are lost, which a log can bear.
func BoundLog(path string) error {
	st, err := os.Stat(path)
	if err != nil || st.Size() <= maxLogBytes {
		return nil
	}
	in, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(in, max(0, st.Size()-maxLogBytes), maxLogBytes))
	return errors.Join(err, out.Close(), in.Truncate(0))
}
