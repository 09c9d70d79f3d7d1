package lint

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	modulePath   = "github.com/crakefs/crake"
	root         = "../.."
	maxFileLines = 800
	maxFuncLines = 100 // the style asks for 70; past 100 it is not a matter of taste any more
	maxMainLines = 100
)

// topFolders are the folders that must explain themselves in a doc.go.
var topFolders = []string{"cmd/crake", "frontend", "compute", "drive", "mgmt", "wire", "bench"}

// roles never import each other: what two of them share is a message or a type in wire.
var roles = []string{"frontend", "compute", "drive", "mgmt"}

// longFiles and longFuncs are the exceptions. They only shrink; each has its reason.
var longFiles = map[string]string{
	"wire/zz_messages.go": "generated",
}

var longFuncs = map[string]string{}

// goFile is a parsed Go file of the tree.
type goFile struct {
	path  string // relative to the root, with slashes
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// goFiles parses every Go file of the module once.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var out []goFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "dist") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f := goFile{path: filepath.ToSlash(rel), lines: bytes.Count(src, []byte{'\n'}), fset: token.NewFileSet()}
		if f.ast, err = parser.ParseFile(f.fset, path, src, parser.ParseComments); err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("found only %d Go files below %s: the test looks in the wrong place", len(out), root)
	}
	return out
}

// Imports run one way: cmd -> roles -> wire -> libraries; bench may import all, nobody imports bench or cmd.
func TestImportDirection(t *testing.T) {
	for _, f := range goFiles(t) {
		from, _, _ := strings.Cut(f.path, "/")
		for _, imp := range f.ast.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			rest, ours := strings.CutPrefix(path, modulePath+"/")
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(rest, "/")
			if why := badImport(from, to); why != "" {
				t.Errorf("%s imports %s: %s", f.path, path, why)
			}
		}
	}
}

// badImport says why a file of one top folder must not import another, or "".
func badImport(from, to string) string {
	isRole := func(s string) bool {
		for _, r := range roles {
			if r == s {
				return true
			}
		}
		return false
	}
	switch {
	case from == to || from == "bench":
		return ""
	case to == "bench" || to == "cmd":
		return "nothing imports " + to
	case from == "wire" && isRole(to):
		return "wire knows no role"
	case isRole(from) && isRole(to):
		return "roles never import each other; what two of them share belongs in wire"
	case from == "cmd" || isRole(from) || from == "wire":
		return ""
	}
	return "a folder that the layout of ARCHITECTURE.md does not know"
}

func TestBadImportIsFound(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"cmd", "drive", false}, {"drive", "wire", false}, {"bench", "mgmt", false}, {"wire", "wire", false},
		{"drive", "compute", true}, {"wire", "drive", true}, {"mgmt", "bench", true}, {"frontend", "cmd", true},
		{"util", "wire", true},
	} {
		if got := badImport(c.from, c.to) != ""; got != c.bad {
			t.Errorf("%s -> %s: bad is %v, want %v", c.from, c.to, got, c.bad)
		}
	}
}

func TestFileAndFunctionLengths(t *testing.T) {
	usedFiles, usedFuncs := map[string]bool{}, map[string]bool{}
	for _, f := range goFiles(t) {
		if f.lines > maxFileLines {
			usedFiles[f.path] = true
			if longFiles[f.path] == "" {
				t.Errorf("%s has %d lines, over %d: split it by concept", f.path, f.lines, maxFileLines)
			}
		}
		if f.path == "cmd/crake/main.go" && f.lines > maxMainLines {
			t.Errorf("%s has %d lines, over %d", f.path, f.lines, maxMainLines)
		}
		if ast.IsGenerated(f.ast) {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			if n <= maxFuncLines {
				continue
			}
			key := f.path + ":" + fn.Name.Name
			usedFuncs[key] = true
			if longFuncs[key] == "" {
				t.Errorf("%s: func %s has %d lines, over %d", f.path, fn.Name.Name, n, maxFuncLines)
			}
		}
	}
	// The lists only shrink: an exception that is not needed any more must go.
	for p := range longFiles {
		if !usedFiles[p] {
			t.Errorf("longFiles names %s without need: take it out", p)
		}
	}
	for p := range longFuncs {
		if !usedFuncs[p] {
			t.Errorf("longFuncs names %s without need: take it out", p)
		}
	}
}

func TestTopFoldersExplainThemselves(t *testing.T) {
	for _, dir := range topFolders {
		src, err := os.ReadFile(filepath.Join(root, dir, "doc.go"))
		if err != nil {
			t.Errorf("%s has no doc.go: %v", dir, err)
			continue
		}
		if bytes.Count(src, []byte{'\n'}) < 8 {
			t.Errorf("%s/doc.go says too little: the walk of a request, who owns which goroutine, lock order, reading order", dir)
		}
	}
}

// Every package has a package comment, so that `go doc` of any of them says what it is.
func TestEveryPackageHasAComment(t *testing.T) {
	has, seen := map[string]bool{}, map[string]bool{}
	for _, f := range goFiles(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(f.path))
		seen[dir] = true
		if f.ast.Doc != nil {
			has[dir] = true
		}
	}
	for dir := range seen {
		if !has[dir] {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

// forbidden are words that must not be in tracked files: markers of unfinished work, and paths of one machine.
var forbidden = []*regexp.Regexp{
	regexp.MustCompile(`\b(FIX` + `ME|XX` + `X)\b`),
	regexp.MustCompile(`\bTODO\(H[0-9]`),
	regexp.MustCompile(`panic\("to` + `do"\)`),
	regexp.MustCompile(`/home/[a-z]+/`),
	regexp.MustCompile(`(^|[\s"'` + "`" + `(=])/wo` + `rk/`),
}

func TestForbiddenWords(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		checkWords(t, name)
	}
}

func checkWords(t *testing.T, name string) {
	t.Helper()
	if name == "go.sum" || strings.Contains(name, "/testdata/") {
		return
	}
	src, err := os.ReadFile(filepath.Join(root, name))
	if os.IsNotExist(err) {
		return // deleted in the work tree, not committed yet
	}
	if err != nil {
		t.Error(err)
		return
	}
	sc := bufio.NewScanner(bytes.NewReader(src))
	sc.Buffer(nil, 1<<20)
	for line := 1; sc.Scan(); line++ {
		for _, re := range forbidden {
			if re.Match(sc.Bytes()) {
				t.Errorf("%s:%d: matches %s: %s", name, line, re, bytes.TrimSpace(sc.Bytes()))
			}
		}
	}
	if err := sc.Err(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// init functions and package-level goroutines hide order; the style forbids the former.
func TestNoInitFunctions(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !ast.IsGenerated(f.ast) {
				t.Errorf("%s: has an init function; make it a constructor", f.path)
			}
		}
	}
}
