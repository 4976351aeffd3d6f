//! The part of a file that a response still has to send: straight from the page cache to the
//! socket, with no copy in the process (sendfile(2)).
//!
//! It owns its descriptor, so that nobody else can close it, or open another file under its number,
//! while a slow client takes its time. Owner: the output of an exchange, and so whoever owns the
//! connection. GIL: not needed, and not to be held: bytes that are not in the page cache come from
//! the disk while the call waits.

const std = @import("std");
const sys = @import("sys.zig");

pub const SendError = sys.WriteError || error{
    /// The file has become shorter than it was, or cannot be read: what was promised is not there.
    FileEnded,
};

/// What is read and sent at a time where the kernel cannot do it by itself.
const copied_bytes = 16 * 1024;

pub const FilePart = struct {
    fd: sys.Fd = sys.no_fd,
    offset: u64 = 0,
    /// Not sent yet.
    remaining: u64 = 0,
    /// sendfile does not work between this file and this socket.
    copies: bool = false,

    pub fn close(self: *FilePart) void {
        if (self.fd != sys.no_fd) sys.close(self.fd);
        self.* = .{};
    }

    /// Sends once, at most `bytes_max`; what was sent.
    pub fn send(self: *FilePart, socket: sys.Fd, bytes_max: u64) SendError!usize {
        const wanted = @min(self.remaining, bytes_max);
        const count = try self.send_once(socket, wanted);
        if (count == 0) return error.FileEnded;
        self.offset += count;
        self.remaining -= count;
        return count;
    }

    fn send_once(self: *FilePart, socket: sys.Fd, wanted: u64) SendError!usize {
        if (!self.copies) {
            return sys.send_file(socket, self.fd, self.offset, wanted) catch |err| switch (err) {
                error.Unsupported => {
                    self.copies = true;
                    return self.copy_once(socket, wanted);
                },
                error.FileUnreadable => error.FileEnded,
                else => |write_error| write_error,
            };
        }
        return self.copy_once(socket, wanted);
    }

    /// Apart, since few need the room on the stack.
    noinline fn copy_once(self: *FilePart, socket: sys.Fd, wanted: u64) SendError!usize {
        var storage: [copied_bytes]u8 = undefined;
        const room = storage[0..@intCast(@min(wanted, storage.len))];
        const count = sys.read_at(self.fd, room, self.offset) catch return error.FileEnded;
        if (count == 0) return 0;
        return sys.send(socket, room[0..count]);
    }
};

const testing = std.testing;

fn test_file(text: []const u8) !sys.Fd {
    const fd = try sys.open_unlinked("/tmp");
    try sys.write_all_at(fd, text, 0);
    return fd;
}

test "a part of a file goes from its offset to its end, however it is divided" {
    inline for (.{ false, true }) |copies| {
        const pair = try sys.socket_pair();
        defer for (pair) |fd| sys.close(fd);
        var part: FilePart = .{
            .fd = try test_file("0123456789"),
            .offset = 2,
            .remaining = 6,
            .copies = copies,
        };
        defer part.close();
        try testing.expectEqual(4, try part.send(pair[0], 4));
        try testing.expectEqual(2, try part.send(pair[0], 4));
        try testing.expectEqual(0, part.remaining);
        var buffer: [16]u8 = undefined;
        const count = try sys.recv(pair[1], &buffer);
        try testing.expectEqualStrings("234567", buffer[0..count]);
    }
}

test "a file that has become shorter is an error, and a full socket another" {
    inline for (.{ false, true }) |copies| {
        const pair = try sys.socket_pair();
        defer for (pair) |fd| sys.close(fd);
        const file = try test_file("abc");
        var part: FilePart = .{ .fd = file, .remaining = 1 << 30, .copies = copies };
        defer part.close();
        try testing.expectEqual(3, try part.send(pair[0], 100));
        try testing.expectError(error.FileEnded, part.send(pair[0], 100));
        part.offset = 0;
        const err = while (true) {
            _ = part.send(pair[0], 3) catch |err| break err;
            part.offset = 0;
        };
        try testing.expectEqual(error.WouldBlock, err);
    }
}
