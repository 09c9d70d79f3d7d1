package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
)

const wireDir = "../.."

// Claim: encoders, methods and MESSAGES.md say what the declarations say, the same each time.
func TestGeneratedIsUpToDate(t *testing.T) {
	files, err := generate(wireDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 6 {
		t.Errorf("%d files, want 6", len(files))
	}
	again, err := generate(wireDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if !bytes.Equal(again[name], want) {
			t.Errorf("wire/%s is another each time", name)
		}
		got, err := os.ReadFile(filepath.Join(wireDir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("wire/%s is out of date (%v): go generate ./wire", name, err)
		}
	}
}

// Claim: methods and MESSAGES.md have nothing that only the next version has, but a word on where it is; and its encoders have nothing else.
func TestNextIsApart(t *testing.T) {
	files, err := generate(wireDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"zz_methods.go", "MESSAGES.md", "zz_messages_test.go"} {
		if bytes.Contains(files[name], []byte("NextEcho")) || bytes.Contains(files[name], []byte("| Next |")) {
			t.Errorf("%s has what is not released", name)
		}
	}
	if !bytes.Contains(files["MESSAGES.md"], []byte("`Next`")) {
		t.Error("MESSAGES.md says nothing of Next")
	}
	if n := bytes.Count(files["zz_next_test.go"], []byte("{},\n")); n != 2 || !bytes.Contains(files["zz_next_test.go"], []byte("&NextEcho{}")) {
		t.Errorf("%d messages that only the next version has", n)
	}
}

// Claim: no field is without a meaning: it has a comment, or a type that has one, or the text of its message names it.
func TestEverythingIsExplained(t *testing.T) {
	g, err := load(wireDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range g.order {
		if g.docs[name] == "" {
			t.Errorf("%s says nothing", name)
		}
		words := strings.FieldsFunc(g.docs[name], func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
		for _, f := range g.structs[name].Fields.List {
			text, err := g.typeText(f.Type)
			if err != nil {
				t.Fatal(err)
			}
			ownType := strings.ContainsAny(text, "([")
			for _, n := range fieldNames(f) {
				if !ownType && joinText(oneLine(f.Doc), oneLine(f.Comment)) == "" && !slices.Contains(words, n) {
					t.Errorf("%s.%s says nothing", name, n)
				}
			}
		}
	}
}

// Claim: a comment behind a method that is not of the form is an error, not a method without messages.
func TestMethodComments(t *testing.T) {
	g := &gen{}
	if err := (func() error { _, err := g.parseMethod(constant{name: "MX", note: "does something"}); return err })(); err == nil {
		t.Error("a comment without messages was taken")
	}
	for note, want := range map[string][]string{
		"PutReq + data -> Empty":                            {"PutReq", "data", "Empty", "", ""},
		"AppendReq + data (whole SegRecords) -> AppendResp": {"AppendReq", "data (whole SegRecords)", "AppendResp", "", ""},
		"ReadReq -> ReadResp + data":                        {"ReadReq", "", "ReadResp", "data", ""},
		"UnlinkReq -> UnlinkResp (unlink and rmdir)":        {"UnlinkReq", "", "UnlinkResp", "", "unlink and rmdir"},
		"MakeRootReq -> Empty: make it (from mgmt)":         {"MakeRootReq", "", "Empty", "", "make it (from mgmt)"},
	} {
		part := methodForm.FindStringSubmatch(note)
		if part == nil {
			t.Errorf("%q is not taken", note)
			continue
		}
		got := []string{part[1], part[2], part[3], part[4], part[5] + strings.Trim(part[6], "()")}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: %q, want %q", note, got, want)
		}
	}
}
