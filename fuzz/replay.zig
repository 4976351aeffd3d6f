//! Tests: every input of the corpora goes through its target again, without a fuzzer, so that what
//! was once found stays found. A panic here comes with a stack trace.
//!
//! Data: reads fuzz/corpus. Thread: one. GIL: not needed.

const std = @import("std");
const targets = @import("targets.zig");
const testing = std.testing;

test "the corpora hold all promises" {
    inline for (@typeInfo(targets).@"struct".decls) |decl| {
        const target = @field(targets, decl.name);
        defer if (@hasDecl(target, "deinit")) target.deinit();
        const count = try replay(decl.name, target.run);
        errdefer std.debug.print("{s}: {d} inputs\n", .{ decl.name, count });
        try testing.expect(count >= 10);
    }
}

fn replay(comptime name: []const u8, run: *const fn (std.mem.Allocator, []const u8) void) !usize {
    const gpa = testing.allocator;
    const folder = @import("fuzz_options").corpus;
    const path = folder ++ "/" ++ name ++ ".txt";
    const text = try std.fs.cwd().readFileAlloc(gpa, path, 1 << 24);
    defer gpa.free(text);
    var lines = std.mem.splitScalar(u8, text, '\n');
    var count: usize = 0;
    while (lines.next()) |line| {
        if (line.len == 0 or line[0] == '#') continue;
        const input = try gpa.alloc(u8, line.len);
        defer gpa.free(input);
        run(gpa, try decode(line, input));
        count += 1;
    }
    return count;
}

/// A line of a corpus: bytes as they are but for \r, \n, \t, \\ and \xHH.
fn decode(line: []const u8, to: []u8) ![]const u8 {
    var at: usize = 0;
    var len: usize = 0;
    while (at < line.len) : (len += 1) {
        const escaped = line[at] == '\\';
        if (escaped) at += 1;
        to[len] = if (!escaped) line[at] else switch (line[at]) {
            'r' => '\r',
            'n' => '\n',
            't' => '\t',
            '\\' => '\\',
            'x' => blk: {
                at += 2;
                break :blk try std.fmt.parseInt(u8, line[at - 1 .. at + 1], 16);
            },
            else => return error.BadEscape,
        };
        at += 1;
    }
    return to[0..len];
}

test "lines of a corpus are bytes" {
    var buffer: [32]u8 = undefined;
    const line = "a\\r\\n\\t\\\\\\x00\\xffz";
    try testing.expectEqualStrings("a\r\n\t\\\x00\xffz", try decode(line, &buffer));
    try testing.expectError(error.BadEscape, decode("\\q", &buffer));
}

test {
    _ = @import("input.zig");
}
