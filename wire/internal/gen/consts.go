package main

import (
	"go/ast"
	"go/token"
	"strings"
)

// constGroup is one const declaration.
type constGroup struct {
	file   string
	doc    string
	consts []constant
}

// constant is one named value.
type constant struct {
	name  string
	typ   string // "" when none is written
	value string // as written
	note  string // its doc comment and the one behind it, in one line
}

// addConsts keeps the exported constants of a declaration, which all must say their value: no iota in what travels.
func (g *gen) addConsts(file string, gd *ast.GenDecl) {
	c := constGroup{file: file, doc: oneLine(gd.Doc)}
	for _, s := range gd.Specs {
		v := s.(*ast.ValueSpec)
		if len(v.Names) != 1 || len(v.Values) != 1 || !v.Names[0].IsExported() {
			continue
		}
		k := constant{name: v.Names[0].Name, value: exprText(v.Values[0]), note: joinText(oneLine(v.Doc), oneLine(v.Comment))}
		if id, ok := v.Type.(*ast.Ident); ok {
			k.typ = id.Name
		}
		c.consts = append(c.consts, k)
	}
	if len(c.consts) > 0 {
		g.consts = append(g.consts, c)
	}
}

// exprText gives the text of a constant's value.
func exprText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Value
	case *ast.Ident:
		return e.Name
	case *ast.BinaryExpr:
		op := " " + e.Op.String() + " "
		if e.Op == token.SHL {
			op = "<<"
		}
		return exprText(e.X) + op + exprText(e.Y)
	}
	return "?"
}

// oneLine gives a comment as one line of text, without the marks for this program.
func oneLine(c *ast.CommentGroup) string {
	if c == nil {
		return ""
	}
	var words []string
	for _, w := range strings.Fields(c.Text()) {
		if w != "wire:message" && w != "wire:fixed" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

func joinText(a, b string) string { return strings.TrimSpace(a + " " + b) }

// blocks gives a comment as Markdown: running text in one line, what is drawn (indented) as it is.
func blocks(c *ast.CommentGroup) string {
	if c == nil {
		return ""
	}
	var out []string
	for line := range strings.Lines(c.Text()) {
		line = strings.TrimRight(line, "\n")
		drawn := strings.HasPrefix(line, "\t") || strings.HasPrefix(line, " ")
		last := len(out) - 1
		switch {
		case line == "wire:message" || line == "wire:fixed":
		case drawn:
			if last >= 0 && out[last] != "" && !strings.HasPrefix(out[last], "    ") {
				out = append(out, "")
			}
			out = append(out, "    "+strings.TrimPrefix(line, "\t"))
		case line == "" || last < 0 || out[last] == "" || strings.HasPrefix(out[last], "    "):
			out = append(out, line)
		default:
			out[last] += " " + line
		}
	}
	return strings.TrimSpace(strings.Join(out, "\n"))
}
