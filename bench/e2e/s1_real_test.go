package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// Claim 1: real input. A source tree of over 10,000 files copies and compares equal; a program builds and vets on the
// mount; git clones, checks and looks clean; SQLite with synchronous writes keeps its integrity.
// One cluster serves all parts, so that each works beside what the others left.
func TestS1RealInput(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	t.Run("SourceTree", func(t *testing.T) { sourceTree(t, c) })
	t.Run("GoBuild", func(t *testing.T) { goBuild(t, c) })
	t.Run("Git", func(t *testing.T) { gitClone(t, c) })
	t.Run("SQLite", func(t *testing.T) { sqlite(t, c) })
	t.Run("SurvivesRestart", func(t *testing.T) {
		must(t, c.Down())
		must(t, c.Up())
		command(t, 2*time.Minute, "", nil, "git", "-C", filepath.Join(c.Mount, "clone"), "fsck", "--full")
		out := command(t, time.Minute, "", nil, "sqlite3", filepath.Join(c.Mount, "db"), "PRAGMA integrity_check; SELECT count(*) FROM t;")
		if out != "ok\n2001\n" {
			t.Errorf("the database after a restart: %q", out)
		}
		if !testing.Short() {
			command(t, 3*time.Minute, "", nil, "diff", "-r", goSrc(t), filepath.Join(c.Mount, "src"))
		}
	})
}

// goSrc is the source tree of the toolchain that the tests call.
func goSrc(t *testing.T) string {
	t.Helper()
	return filepath.Join(strings.TrimSpace(command(t, time.Minute, "", nil, "go", "env", "GOROOT")), "src")
}

func sourceTree(t *testing.T, c *devcluster.Cluster) {
	files, src := 0, goSrc(t)
	must(t, filepath.WalkDir(src, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	}))
	if files < 10000 {
		t.Fatalf("%s has only %d files: no real test", src, files)
	}
	dst := filepath.Join(c.Mount, "src")
	begin := time.Now()
	command(t, 5*time.Minute, "", nil, "cp", "-a", src, dst)
	copied := time.Since(begin)
	dropCaches(t)
	begin = time.Now()
	command(t, 5*time.Minute, "", nil, "diff", "-r", src, dst)
	t.Logf("%d files: copied in %v, compared in %v", files, copied.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))

	// Modes and times as well: what tar would keep.
	list := func(dir string) string {
		out := command(t, 2*time.Minute, dir, nil, "find", ".", "-type", "f", "-printf", "%p %m %s %T@\\n")
		lines := strings.Split(out, "\n")
		return sortedText(lines)
	}
	if list(src) != list(dst) {
		t.Error("names, modes, sizes or times of the copy differ")
	}
}

func goBuild(t *testing.T, c *devcluster.Cluster) {
	dir := filepath.Join(c.Mount, "prog")
	must(t, os.MkdirAll(filepath.Join(dir, "cache"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/prog\n\ngo 1.25\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644))
	// The build cache and the temporary files lie on the mount as well: locks, renames, many small files, an executable.
	env := []string{
		"GOCACHE=" + filepath.Join(dir, "cache"), "GOTMPDIR=" + dir, "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0",
		"GOTOOLCHAIN=local",
	}
	begin := time.Now()
	command(t, 6*time.Minute, dir, env, "go", "build", "-o", "prog", ".")
	command(t, 4*time.Minute, dir, env, "go", "vet", ".")
	t.Logf("go build and go vet in %v", time.Since(begin).Round(time.Millisecond))
	if out := command(t, time.Minute, dir, nil, filepath.Join(dir, "prog")); out != "sha256 a591a6d40bf420404a011733cfb7b190d62c65bf0bcda32b57b277d9ad9f146e\n" {
		t.Errorf("the built program printed %q", out)
	}
}

// program uses enough of the standard library to fill a build cache, yet no network package: a minute is enough.
const program = `package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

func main() {
	var v struct{ A []string }
	if err := json.Unmarshal([]byte(` + "`" + `{"A":["Hello","World"]}` + "`" + `), &v); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var b strings.Builder
	if err := template.Must(template.New("").Parse("{{range .}}{{.}} {{end}}")).Execute(&b, v.A); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("sha256 %x\n", sha256.Sum256([]byte(strings.TrimSpace(b.String()))))
}
`

func gitClone(t *testing.T, c *devcluster.Cluster) {
	// A repository of a few hundred commits, made here: no network, and independent of how this tree was checked out.
	src := filepath.Join(c.Scratch(), "repo")
	command(t, 2*time.Minute, "", nil, "sh", "-ec", gitMake, "sh", src, filepath.Join(goSrc(t), "net"))
	dst := filepath.Join(c.Mount, "clone")
	// file:// makes git pack and unpack, where a plain path would copy or link.
	command(t, 3*time.Minute, "", nil, "git", "clone", "-q", "file://"+src, dst)
	command(t, 2*time.Minute, "", nil, "git", "-C", dst, "fsck", "--full", "--strict")
	if out := command(t, 2*time.Minute, "", nil, "git", "-C", dst, "status", "--porcelain"); out != "" {
		t.Errorf("git status is not clean: %s", out)
	}
	command(t, 2*time.Minute, dst, nil, "sh", "-ec", gitWork)
	if a, b := command(t, time.Minute, "", nil, "git", "-C", src, "rev-parse", "HEAD~0^{tree}"), command(t, time.Minute, "", nil, "git", "-C", dst, "rev-parse", "origin/HEAD^{tree}"); a != b {
		t.Errorf("the trees differ: %s and %s", a, b)
	}
}

const gitMake = `
git init -q -b main "$1"
cd "$1"
git config user.email test@example.org
git config user.name Test
git config commit.gpgsign false
cp -r "$2" tree
chmod -R u+w .
git add .
git commit -q -m all
for i in $(seq 1 60); do
  echo "$i" >> counter
  mkdir -p d$((i % 7))
  echo "change $i" > d$((i % 7))/f$i
  git add .
  git commit -q -m "commit $i"
done
`

const gitWork = `
git config user.email test@example.org
git config user.name Test
git config commit.gpgsign false
git checkout -q -b work HEAD~20
for i in 1 2 3 4 5; do echo "work $i" >> counter2; git add .; git commit -q -m "work $i"; done
git rebase -q main
git merge -q --no-edit main
git gc -q
git fsck --full
git checkout -q main
test -z "$(git status --porcelain)"
`

func sqlite(t *testing.T, c *devcluster.Cluster) {
	db := filepath.Join(c.Mount, "db")
	var script strings.Builder
	script.WriteString("PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);\n")
	for range 50 { // 50 transactions of 20 rows, each with the journal created, synced and removed
		script.WriteString("BEGIN;\n")
		for range 20 {
			script.WriteString("INSERT INTO t(b) VALUES (randomblob(700));\n")
		}
		script.WriteString("COMMIT;\n")
	}
	// The same through a write-ahead log, which lives on a shared mapping (mmap of the -shm file).
	script.WriteString("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;\n")
	for range 50 {
		script.WriteString("BEGIN;\n")
		for range 20 {
			script.WriteString("INSERT INTO t(b) VALUES (randomblob(700));\n")
		}
		script.WriteString("COMMIT;\n")
	}
	script.WriteString("INSERT INTO t(b) VALUES ('end'); PRAGMA wal_checkpoint(TRUNCATE);\n")
	in := filepath.Join(c.Scratch(), "script.sql")
	must(t, os.WriteFile(in, []byte(script.String()), 0o644))
	begin := time.Now()
	command(t, 3*time.Minute, "", nil, "sqlite3", "-bail", db, ".read "+in)
	t.Logf("100 synchronous transactions in %v", time.Since(begin).Round(time.Millisecond))
	if out := command(t, time.Minute, "", nil, "sqlite3", db, "PRAGMA integrity_check; SELECT count(*) FROM t;"); out != "ok\n2001\n" {
		t.Errorf("integrity: %q", out)
	}
}
