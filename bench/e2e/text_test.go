package e2e

import (
	"slices"
	"strings"
)

// sortedText sorts lines and joins them.
func sortedText(lines []string) string {
	lines = slices.Clone(lines)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
