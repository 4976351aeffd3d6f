//! The values of one field of a request: of its only line, or of all its lines, and the elements of
//! a list (RFC 9110 5.2, 5.3, 5.6.1). Pure; slices into the request's buffer; GIL: not needed.

const std = @import("std");
const fields = @import("fields.zig");
const scanner = @import("scanner.zig");
const RequestHead = @import("request_head.zig").RequestHead;

/// A field that may stand only once.
pub const Single = union(enum) { none, value: []const u8, repeated };

pub fn single(head: *const RequestHead, bytes: []const u8, name: fields.Name) Single {
    var lines: Lines = .{ .head = head, .bytes = bytes, .name = name };
    const value = lines.next() orelse return .none;
    return if (lines.next() == null) .{ .value = value } else .repeated;
}

/// The values of all lines with a name, in order.
pub const Lines = struct {
    head: *const RequestHead,
    bytes: []const u8,
    name: fields.Name,
    index: usize = 0,

    pub fn next(self: *Lines) ?[]const u8 {
        const lines = self.head.lines();
        while (self.index < lines.len) {
            const line = &lines[self.index];
            self.index += 1;
            if (line.known == self.name) return line.value.of(self.bytes);
        }
        return null;
    }
};

/// The elements of a list in one value, without the whitespace round them; empty ones are skipped.
/// A comma inside a quoted string does not divide.
pub const Elements = struct {
    rest: []const u8,

    pub fn next(self: *Elements) ?[]const u8 {
        while (self.rest.len > 0) {
            const end = end_of_element(self.rest);
            const element = scanner.trim_whitespace(self.rest[0..end]);
            self.rest = if (end == self.rest.len) "" else self.rest[end + 1 ..];
            if (element.len > 0) return element;
        }
        return null;
    }

    fn end_of_element(text: []const u8) usize {
        var quoted = false;
        for (text, 0..) |byte, index| switch (byte) {
            '"' => quoted = !quoted,
            ',' => if (!quoted) return index,
            else => {},
        };
        return text.len;
    }
};

const testing = std.testing;

/// A request with these field lines, for tests of what reads them.
pub const TestRequest = struct {
    bytes: []const u8,
    storage: [16]@import("request_head.zig").FieldLine = undefined,
    head: RequestHead = undefined,

    /// `lines` are whole field lines with their CRLFs.
    pub fn init(self: *TestRequest, comptime lines: []const u8) *TestRequest {
        self.bytes = "GET / HTTP/1.1\r\nHost: a\r\n" ++ lines ++ "\r\n";
        self.head = .init(&self.storage);
        const complete = self.head.parse(self.bytes, .{
            .request_line_bytes_max = 100,
            .head_bytes_max = 10_000,
            .field_lines_max = 16,
        }) catch |err| std.debug.panic("{t}", .{err});
        std.debug.assert(complete);
        return self;
    }
};

test "a field that stands once, twice, never" {
    var storage: TestRequest = undefined;
    const request = storage.init("Range: a\r\nIf-Match: b\r\nIf-Match: c\r\n");
    const head = &request.head;
    try testing.expectEqualStrings("a", single(head, request.bytes, .range).value);
    try testing.expectEqual(.repeated, single(head, request.bytes, .if_match));
    try testing.expectEqual(.none, single(head, request.bytes, .if_range));
    var lines: Lines = .{ .head = head, .bytes = request.bytes, .name = .if_match };
    try testing.expectEqualStrings("b", lines.next().?);
    try testing.expectEqualStrings("c", lines.next().?);
    try testing.expectEqual(null, lines.next());
}

test "elements of a list" {
    var elements: Elements = .{ .rest = " ,a , \"b, c\" ,, W/\"d\"\t,\"e" };
    for ([_][]const u8{ "a", "\"b, c\"", "W/\"d\"", "\"e" }) |expected| {
        try testing.expectEqualStrings(expected, elements.next().?);
    }
    try testing.expectEqual(null, elements.next());
    var nothing: Elements = .{ .rest = " , ," };
    try testing.expectEqual(null, nothing.next());
}
