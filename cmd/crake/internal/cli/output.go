package cli

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// Formats of what a command prints.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatCSV   = "csv"
)

// formatFlag is the flag -f. It refuses what the command does not offer.
type formatFlag struct {
	value   string
	offered []string
}

// register adds -f with the formats that the command offers, the default first.
func (f *formatFlag) register(c *cobra.Command, offered ...string) {
	f.value, f.offered = offered[0], offered
	c.Flags().VarP(f, "format", "f", "how to print: "+strings.Join(offered, ", "))
}

// String gives the format.
func (f *formatFlag) String() string { return f.value }

// Type names the flag's value in the help.
func (f *formatFlag) Type() string { return "FORMAT" }

// Set takes a format.
func (f *formatFlag) Set(s string) error {
	if !slices.Contains(f.offered, s) {
		return fmt.Errorf("want %s", strings.Join(f.offered, " or "))
	}
	f.value = s
	return nil
}

func (f *formatFlag) is(s string) bool { return f.value == s }

// column is a column of a listing.
type column[T any] struct {
	title string
	cell  func(T) string
}

// printList prints rows in the chosen format. JSON prints the rows themselves, whose keys never change meaning.
func printList[T any](w io.Writer, format string, rows []T, columns []column[T]) error {
	switch format {
	case formatJSON:
		if rows == nil {
			rows = []T{} // [] is a list, null is a surprise
		}
		return printJSON(w, rows)
	case formatCSV:
		cw := csv.NewWriter(w)
		_ = cw.Write(titles(columns))
		for _, r := range rows {
			_ = cw.Write(cells(r, columns))
		}
		cw.Flush()
		return cw.Error()
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(strings.Join(titles(columns), "\t")))
	for _, r := range rows {
		c := cells(r, columns)
		for i := range c {
			if c[i] == "" {
				c[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(c, "\t"))
	}
	return tw.Flush()
}

func titles[T any](columns []column[T]) []string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = c.title
	}
	return out
}

func cells[T any](row T, columns []column[T]) []string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = strings.Join(strings.Fields(c.cell(row)), " ") // one line, whatever it says
	}
	return out
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func intList(v []int) string {
	s := make([]string, len(v))
	for i, n := range v {
		s[i] = fmt.Sprint(n)
	}
	return strings.Join(s, ",")
}

func idList(v []uint32) string {
	s := make([]string, len(v))
	for i, n := range v {
		s[i] = fmt.Sprint(n)
	}
	return strings.Join(s, ",")
}

// since gives how long ago something was, as people say it; "" for never.
func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return time.Since(t).Round(time.Second).String()
}
