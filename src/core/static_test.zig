//! Tests of static.zig against a real directory. Thread: the test's. GIL: none.
const std = @import("std");
