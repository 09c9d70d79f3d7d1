// Package drive is the role that keeps strips and segments on devices, safe from crashes.
package drive
