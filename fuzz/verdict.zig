//! Tells how the server reads the bytes of a connection, for tests that compare it with other
//! readers: a program that takes one stream after the other and prints what it found in each.
//!
//! A stream comes as four bytes of length, little-endian, and the bytes; the answer, text, goes out
//! the same way. Names and values are in hexadecimal. Data: owns its buffers. Thread: one.
//! GIL: not needed.

const std = @import("std");
const core = @import("core");
const reading = @import("reading.zig");

const stream_bytes_max = 16 * 1024 * 1024;

var in_buffer: [64 * 1024]u8 = undefined;
var out_buffer: [64 * 1024]u8 = undefined;
var scratch: [64 * 1024]u8 = undefined;

pub fn main() !void {
    const gpa = std.heap.c_allocator;
    var in = std.fs.File.stdin().readerStreaming(&in_buffer);
    var out = std.fs.File.stdout().writerStreaming(&out_buffer);
    var pool: core.exchange.Pool = .{ .gpa = gpa, .field_lines_max = 100 };
    defer pool.deinit();
    while (true) {
        const length = in.interface.takeInt(u32, .little) catch |err| switch (err) {
            error.EndOfStream => return,
            else => return err,
        };
        if (length > stream_bytes_max) return error.TooLong;
        const bytes = try in.interface.readAlloc(gpa, length);
        defer gpa.free(bytes);
        var answer: std.Io.Writer.Allocating = .init(gpa);
        defer answer.deinit();
        try describe(gpa, &pool, bytes, &answer.writer);
        try out.interface.writeInt(u32, @intCast(answer.written().len), .little);
        try out.interface.writeAll(answer.written());
        try out.interface.flush();
    }
}

const Printer = struct {
    to: *std.Io.Writer,

    pub fn visit(self: Printer, request: reading.Request) !void {
        const exchange = request.exchange;
        const head = &exchange.head;
        const bytes = exchange.bytes;
        try self.to.print("request {d} {d}\nmethod {x}\ntarget {x}\n", .{
            request.start, request.end, head.method.of(bytes), head.target.of(bytes),
        });
        try self.to.print("form {t}\nversion {t}\nauthority {x}\npath {x}\nquery {x}\n", .{
            head.target_form,    head.version,         head.authority.of(bytes),
            head.path.of(bytes), head.query.of(bytes),
        });
        for (head.lines()) |line| {
            try self.to.print("field {x} {x}\n", .{ line.name.of(bytes), line.value.of(bytes) });
        }
        try self.to.print("persistent {}\nframing {t}\nbody ", .{ head.persistent, head.framing });
        while (exchange.body.mode != .none) {
            var piece: [4096]u8 = undefined;
            // Gathered, so that neither descriptor nor limits are looked at.
            const body = &exchange.body;
            const count = try body.read(core.sys.no_fd, &piece, undefined, undefined);
            if (count == 0) break;
            try self.to.print("{x}", .{piece[0..count]});
        }
        try self.to.writeAll("\n");
    }
};

fn describe(
    gpa: std.mem.Allocator,
    pool: *core.exchange.Pool,
    bytes: []const u8,
    to: *std.Io.Writer,
) !void {
    const exchange = try pool.acquire();
    defer pool.release(exchange);
    var all: ?usize = bytes.len;
    var client: reading.Client = .{ .bytes = bytes, .next_piece = whole, .context = &all };
    var reader: reading.Reader(Printer) = .{
        .gpa = gpa,
        .limits = &reading.default_limits,
        .exchange = exchange,
        .client = &client,
        .visitor = .{ .to = to },
        .scratch = &scratch,
    };
    switch (try reader.run()) {
        .refused => |refusal| try to.print("end refused {d} {s}\n", .{
            refusal.status, refusal.reason,
        }),
        else => |end| try to.print("end {t}\n", .{end}),
    }
}

fn whole(context: *anyopaque) ?usize {
    const all: *?usize = @ptrCast(@alignCast(context));
    defer all.* = null;
    return all.*;
}
