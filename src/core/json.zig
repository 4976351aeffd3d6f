//! JSON text of bytes that are not known to be UTF-8: what a client sent, a path of the system.
//!
//! Pure; any thread. GIL: not needed.

const std = @import("std");
const Writer = std.Io.Writer;

/// A JSON string. Each byte past ASCII stands for one character (Latin-1, as in PEP 3333), so that
/// every input has an output.
pub fn write_string(writer: *Writer, bytes: []const u8) Writer.Error!void {
    try writer.writeByte('"');
    for (bytes) |byte| switch (byte) {
        '"' => try writer.writeAll("\\\""),
        '\\' => try writer.writeAll("\\\\"),
        0...0x1f, 0x7f...0xff => try writer.print("\\u{x:0>4}", .{byte}),
        else => try writer.writeByte(byte),
    };
    try writer.writeByte('"');
}

const testing = std.testing;

test "json: any bytes become a string" {
    var buffer: [256]u8 = undefined;
    var writer: Writer = .fixed(&buffer);
    try write_string(&writer, "/a\"b\\c\n\x00\xff~ ");
    try testing.expectEqualStrings(
        "\"/a\\\"b\\\\c\\u000a\\u0000\\u00ff~ \"",
        writer.buffered(),
    );
    const parsed = try std.json.parseFromSlice([]u8, testing.allocator, writer.buffered(), .{});
    defer parsed.deinit();
    try testing.expectEqualStrings("/a\"b\\c\n\x00\u{ff}~ ", parsed.value);
}
