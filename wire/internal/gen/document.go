package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// document writes MESSAGES.md.
func (g *gen) document() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# Crake: methods, messages, numbers

Written by ` + "`go generate ./wire`" + ` from the declarations in ` + "`wire/*.go`" + `: change those. How a message becomes bytes, and what a connection is, says
[PROTOCOL.md](PROTOCOL.md).

`)
	if err := g.methodTables(&b); err != nil {
		return nil, err
	}
	if err := g.messageTables(&b); err != nil {
		return nil, err
	}
	g.typeTable(&b)
	g.constTables(&b)
	return b.Bytes(), nil
}

// methodTables writes the methods, a table for each declaration: those are by who answers.
func (g *gen) methodTables(b *bytes.Buffer) error {
	b.WriteString("## Methods\n\nA request of a method carries the message under *request* in its meta section, and data where that is said; likewise the answer, unless it is an error.\nWhat a method does stands with its request.\n")
	for _, group := range g.consts {
		if group.consts[0].typ != "Method" {
			continue
		}
		fmt.Fprintf(b, "\n%s\n\n| number | method | request | answer | |\n|---|---|---|---|---|\n", group.doc)
		for _, c := range group.consts {
			m, err := g.parseMethod(c)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", m.value, m.name, withData(m.req, m.reqData), withData(m.resp, m.respData), cell(m.note))
		}
	}
	return nil
}

func withData(message, data string) string {
	link := fmt.Sprintf("[%s](#%s)", message, strings.ToLower(message))
	if data == "" {
		return link
	}
	return link + " + " + data
}

// messageTables writes every message with its fields in the order of their encoding.
func (g *gen) messageTables(b *bytes.Buffer) error {
	b.WriteString("\n## Messages\n\nFields stand in the order of their bytes. A type in parentheses is an integer with a meaning of its own: see Types.\n")
	for _, name := range g.order {
		fmt.Fprintf(b, "\n### %s\n\n", name)
		if g.fixed[name] {
			b.WriteString("Fixed: it never grows, and has no length before it.\n\n")
		}
		fmt.Fprintf(b, "%s\n", g.texts[name])
		fields := g.structs[name].Fields.List
		if len(fields) == 0 {
			b.WriteString("\nNo fields.\n")
			continue
		}
		b.WriteString("\n| field | type | meaning |\n|---|---|---|\n")
		for _, f := range fields {
			text, err := g.typeText(f.Type)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			note := joinText(oneLine(f.Doc), oneLine(f.Comment))
			for _, n := range fieldNames(f) {
				fmt.Fprintf(b, "| %s | %s | %s |\n", n, text, cell(note))
			}
		}
	}
	return nil
}

// typeText gives a field's type in the words of PROTOCOL.md.
func (g *gen) typeText(t ast.Expr) (string, error) {
	switch t := t.(type) {
	case *ast.ArrayType:
		if id, ok := t.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return "list of bytes", nil
		}
		elt, err := g.typeText(t.Elt)
		return "list of " + elt, err
	case *ast.Ident:
		base := g.base(t.Name)
		switch {
		case base == "":
			return fmt.Sprintf("[%s](#%s)", t.Name, strings.ToLower(t.Name)), nil
		case base == t.Name:
			return base, nil
		case strings.HasPrefix(base, "["):
			return fmt.Sprintf("%s bytes (%s)", strings.Trim(base, "[]byte"), t.Name), nil
		}
		return fmt.Sprintf("%s (%s)", base, t.Name), nil
	}
	return "", fmt.Errorf("type %T is not supported", t)
}

// typeTable writes the named types that fields of messages have.
func (g *gen) typeTable(b *bytes.Buffer) {
	used := map[string]bool{}
	for _, s := range g.structs {
		for _, f := range s.Fields.List {
			t := f.Type
			if a, ok := t.(*ast.ArrayType); ok {
				t = a.Elt
			}
			if id, ok := t.(*ast.Ident); ok && g.kinds[id.Name] != "" {
				used[id.Name] = true
			}
		}
	}
	names := make([]string, 0, len(used))
	for n := range used {
		names = append(names, n)
	}
	slices.Sort(names)
	b.WriteString("\n## Types\n\n| type | is | meaning |\n|---|---|---|\n")
	for _, n := range names {
		base := g.base(n)
		if strings.HasPrefix(base, "[") {
			base = strings.Trim(base, "[]byte") + " bytes"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", n, base, cell(g.docs[n]))
	}
}

// constTables writes the numbers that travel (or bound what does), a table for each declaration.
func (g *gen) constTables(b *bytes.Buffer) {
	b.WriteString("\n## Numbers\n\nA value that is not listed is to be treated as the type says, or as unknown; numbers are never reused.\n")
	for _, group := range g.consts {
		if group.consts[0].typ == "Method" || !strings.HasPrefix(group.file, "msg_") && !slices.Contains(numberFiles, group.file) {
			continue
		}
		if group.doc != "" {
			fmt.Fprintf(b, "\n%s\n", group.doc)
		} else {
			b.WriteString("\nOne value:\n")
		}
		b.WriteString("\n| name | value | |\n|---|---|---|\n")
		for _, c := range group.consts {
			fmt.Fprintf(b, "| %s | %s | %s |\n", c.name, c.value, cell(c.note))
		}
	}
}

// numberFiles are the files besides those of messages whose constants concern other implementations.
var numberFiles = []string{"clustermap.go", "errors.go", "header.go", "ids.go", "limits.go"}

// cell makes text fit for a cell of a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
