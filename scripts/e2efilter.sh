#!/usr/bin/env bash
# Passes the output of `go test -v` on and leaves out what says nothing ("=== RUN" and friends), so that a person sees
# each test's result, what failed and go test's closing lines.
exec grep --line-buffered -vE '^=== (RUN|PAUSE|CONT|NAME)'
