package dump

import (
	"encoding/hex"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/crakefs/crake/wire"
)

// maxShown bounds the elements of a list, and the bytes of a text, that lines show; JSON has all.
const maxShown = 16

// printFields prints the fields of a message, one a line, those of nested ones indented further.
func printFields(w io.Writer, v reflect.Value, indent string) {
	for i := range v.NumField() {
		printValue(w, v.Type().Field(i).Name, v.Field(i), indent)
	}
}

func printValue(w io.Writer, name string, v reflect.Value, indent string) {
	if text, ok := scalar(v); ok {
		fmt.Fprintf(w, "%s%s: %s\n", indent, name, text)
		return
	}
	if v.Kind() == reflect.Struct {
		fmt.Fprintf(w, "%s%s:\n", indent, name)
		printFields(w, v, indent+"  ")
		return
	}
	n := v.Len()
	if n == 0 {
		fmt.Fprintf(w, "%s%s: none\n", indent, name)
		return
	}
	if _, ok := scalar(v.Index(0)); ok {
		var b strings.Builder
		for i := range min(n, maxShown) {
			text, _ := scalar(v.Index(i))
			fmt.Fprintf(&b, " %s", text)
		}
		if n > maxShown {
			fmt.Fprintf(&b, " ... (%d)", n)
		}
		fmt.Fprintf(w, "%s%s:%s\n", indent, name, b.String())
		return
	}
	for i := range min(n, maxShown) {
		printValue(w, fmt.Sprintf("%s[%d]", name, i), v.Index(i), indent)
	}
	if n > maxShown {
		fmt.Fprintf(w, "%s%s[%d...]: %d more\n", indent, name, maxShown, n-maxShown)
	}
}

// scalar gives the text of a value that is no struct and no list of others.
func scalar(v reflect.Value) (string, bool) {
	switch x := v.Interface().(type) {
	case wire.Kind:
		if x == wire.KindNone {
			return "ok", true
		}
		return x.Error(), true
	case fmt.Stringer: // roles, states, ids of clusters and strips
		return x.String(), true
	case []byte:
		if len(x) > maxShown*4 {
			return fmt.Sprintf("%s... (%d bytes)", hex.EncodeToString(x[:maxShown*4]), len(x)), true
		}
		return hex.EncodeToString(x), true
	}
	switch v.Kind() {
	case reflect.String:
		return strconv.Quote(v.String()), true
	case reflect.Bool, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprint(v.Interface()), true
	}
	return "", false
}

// jsonValue makes of a message what encoding/json prints well: names for what has some, texts for bytes, whole numbers for ids.
func jsonValue(v reflect.Value) any {
	switch x := v.Interface().(type) {
	case wire.Kind, fmt.Stringer, []byte:
		text, _ := scalar(v)
		if b, ok := x.([]byte); ok {
			text = hex.EncodeToString(b)
		}
		return text
	}
	switch v.Kind() {
	case reflect.Struct:
		m := make(map[string]any, v.NumField())
		for i := range v.NumField() {
			m[v.Type().Field(i).Name] = jsonValue(v.Field(i))
		}
		return m
	case reflect.Slice:
		l := make([]any, v.Len())
		for i := range l {
			l[i] = jsonValue(v.Index(i))
		}
		return l
	}
	return v.Interface()
}
