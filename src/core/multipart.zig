//! The body of a response with several parts of a file: multipart/byteranges (RFC 9110 14.6).
//!
//! The text between the parts is written when the response begins; the parts themselves are sent
//! one after the other from the file. Owner: the output of an exchange. GIL: not needed.

const std = @import("std");
const ranges_module = @import("ranges.zig");
const Range = ranges_module.Range;

pub const boundary_bytes = 32;

/// For one delimiter and the two fields of a part; the media types that we send are far shorter.
const text_bytes_max = 320;

pub const Multipart = struct {
    gpa: std.mem.Allocator,
    storage: [(ranges_module.ranges_max + 1) * text_bytes_max]u8 = undefined,
    /// Where each part's text ends; the last is the closing delimiter.
    ends: [ranges_module.ranges_max + 1]u32 = undefined,
    ranges: [ranges_module.ranges_max]Range = undefined,
    count: u32,
    next_index: u32 = 0,

    pub const Error = error{OutOfMemory};

    pub fn create(
        gpa: std.mem.Allocator,
        ranges: []const Range,
        size: u64,
        content_type: []const u8,
        boundary: *const [boundary_bytes]u8,
    ) Error!*Multipart {
        const self = try gpa.create(Multipart);
        errdefer gpa.destroy(self);
        self.gpa = gpa;
        self.count = @intCast(ranges.len);
        self.next_index = 0;
        @memcpy(self.ranges[0..ranges.len], ranges);
        var used: usize = 0;
        for (ranges, self.ends[0..ranges.len]) |range, *end| {
            const text = std.fmt.bufPrint(
                self.storage[used..],
                "\r\n--{s}\r\nContent-Type: {s}\r\nContent-Range: bytes {d}-{d}/{d}\r\n\r\n",
                .{ boundary, content_type, range.start, range.start + range.length - 1, size },
            ) catch return error.OutOfMemory;
            used += text.len;
            end.* = @intCast(used);
        }
        const closing = std.fmt.bufPrint(self.storage[used..], "\r\n--{s}--\r\n", .{
            boundary,
        }) catch return error.OutOfMemory;
        self.ends[ranges.len] = @intCast(used + closing.len);
        return self;
    }

    pub fn destroy(self: *Multipart) void {
        self.gpa.destroy(self);
    }

    pub fn content_length(self: *const Multipart) u64 {
        var length: u64 = self.ends[self.count];
        for (self.ranges[0..self.count]) |range| length += range.length;
        return length;
    }

    pub const Step = struct {
        text: []const u8,
        /// Of length 0 behind the last part.
        range: Range,
    };

    /// What is sent next: the text, then the range. Null at the end.
    pub fn next(self: *Multipart) ?Step {
        const index = self.next_index;
        if (index > self.count) return null;
        self.next_index += 1;
        const start = if (index == 0) 0 else self.ends[index - 1];
        return .{
            .text = self.storage[start..self.ends[index]],
            .range = if (index < self.count) self.ranges[index] else .{ .start = 0, .length = 0 },
        };
    }
};

const testing = std.testing;

test "the text between the parts" {
    const boundary: [boundary_bytes]u8 = @splat('b');
    const ranges = [_]Range{ .{ .start = 5, .length = 2 }, .{ .start = 0, .length = 1 } };
    const multipart = try Multipart.create(testing.allocator, &ranges, 10, "text/plain", &boundary);
    defer multipart.destroy();
    var whole: std.ArrayList(u8) = .empty;
    defer whole.deinit(testing.allocator);
    while (multipart.next()) |step| {
        try whole.appendSlice(testing.allocator, step.text);
        const part = "0123456789"[step.range.start..][0..step.range.length];
        try whole.appendSlice(testing.allocator, part);
    }
    const line = "--" ++ "b" ** boundary_bytes;
    try testing.expectEqualStrings("\r\n" ++ line ++ "\r\nContent-Type: text/plain\r\n" ++
        "Content-Range: bytes 5-6/10\r\n\r\n56\r\n" ++ line ++
        "\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-0/10\r\n\r\n0\r\n" ++
        line ++ "--\r\n", whole.items);
    try testing.expectEqual(whole.items.len, multipart.content_length());
}

test "as many parts as there may be, with the longest numbers, fit" {
    const boundary: [boundary_bytes]u8 = @splat('b');
    const far = std.math.maxInt(i64) - 1;
    const ranges: [ranges_module.ranges_max]Range = @splat(.{ .start = far, .length = 1 });
    const media_type = "a" ** 120;
    const multipart =
        try Multipart.create(testing.allocator, &ranges, far + 1, media_type, &boundary);
    defer multipart.destroy();
    var steps: usize = 0;
    while (multipart.next()) |_| steps += 1;
    try testing.expectEqual(ranges_module.ranges_max + 1, steps);
}
