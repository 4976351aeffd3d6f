//! The floor: what the kernel and the loopback interface cost a server that does nothing else.
//!
//! An edge-triggered epoll server with fixed replies, without Python: 13 bytes of text, or a JSON
//! document for `GET /json`. It makes the fewest system calls that answer a request: one recv, one
//! send and a share of an epoll_wait. It knows just enough HTTP to be loaded by wrk: a request
//! ends at its first empty line, none has a body, and every connection is persistent. Requests may
//! be pipelined or arrive in pieces.
//!
//! One thread owns everything. Connections live in a table indexed by descriptor, so that nothing
//! is allocated after start.
//!
//!     python -m ziglang build-exe -OReleaseSafe -mcpu=baseline floor.zig && ./floor 8000

const std = @import("std");
const assert = std.debug.assert;
const linux = std.os.linux;
const posix = std.posix;

const descriptors_max = 16 * 1024;
const events_max = 256;
const head_bytes_max = 4096;
const backlog = 2048;
const hang_up: u32 = linux.EPOLL.RDHUP | linux.EPOLL.HUP | linux.EPOLL.ERR;

/// Date is fixed as well: a server formats it once a second at most.
const reply_text = "HTTP/1.1 200 OK\r\n" ++
    "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n" ++
    "Server: floor\r\n" ++
    "Content-Type: text/plain\r\n" ++
    "Content-Length: 13\r\n" ++
    "\r\n" ++
    "Hello, World!";

const reply_json = "HTTP/1.1 200 OK\r\n" ++
    "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n" ++
    "Server: floor\r\n" ++
    "Content-Type: application/json\r\n" ++
    "Content-Length: 28\r\n" ++
    "\r\n" ++
    "{\"message\": \"Hello, World!\"}";

comptime {
    assert(std.mem.endsWith(u8, reply_text, "\r\n\r\nHello, World!"));
    assert("{\"message\": \"Hello, World!\"}".len == 28);
}

const Connection = struct {
    /// What has been received and not yet answered: part of a head, or heads behind `unsent`.
    buffer: [head_bytes_max]u8,
    filled: usize,
    /// The rest of a reply that the socket did not take. Nothing is read until it is gone.
    unsent: []const u8,
};

const Outcome = enum { open, finished };

pub fn main() !void {
    const port = try parse_port();
    const connections = try map_connections();

    const listener = try listen(port);
    defer posix.close(listener);
    const epoll = try posix.epoll_create1(linux.EPOLL.CLOEXEC);
    defer posix.close(epoll);
    try watch(epoll, listener, linux.EPOLL.IN);

    var events: [events_max]linux.epoll_event = undefined;
    while (true) {
        const count = posix.epoll_wait(epoll, &events, -1);
        for (events[0..count]) |event| {
            const fd = event.data.fd;
            if (fd == listener) {
                try accept_all(epoll, listener, connections);
                continue;
            }
            const gone = event.events & hang_up != 0;
            switch (advance(fd, &connections[@intCast(fd)], gone)) {
                .open => {},
                // Closing takes the descriptor out of the epoll set, and there is one event for
                // a descriptor in a batch: no later one can name its successor.
                .finished => posix.close(fd),
            }
        }
    }
}

/// Mapped rather than allocated: the pages of an entry are only backed once it is used, whereas
/// an allocator of a safe build fills what it gives out.
fn map_connections() ![]Connection {
    const size = std.mem.alignForward(
        usize,
        descriptors_max * @sizeOf(Connection),
        std.heap.page_size_min,
    );
    const protection = posix.PROT.READ | posix.PROT.WRITE;
    const kind: posix.MAP = .{ .TYPE = .PRIVATE, .ANONYMOUS = true };
    const memory = try posix.mmap(null, size, protection, kind, -1, 0);
    const first: [*]Connection = @ptrCast(memory.ptr);
    return first[0..descriptors_max];
}

fn parse_port() !u16 {
    var arguments = std.process.args();
    _ = arguments.skip();
    const text = arguments.next() orelse return error.PortMissing;
    return std.fmt.parseInt(u16, text, 10);
}

fn listen(port: u16) !posix.fd_t {
    const flags = posix.SOCK.STREAM | posix.SOCK.NONBLOCK | posix.SOCK.CLOEXEC;
    const fd = try posix.socket(posix.AF.INET, flags, posix.IPPROTO.TCP);
    errdefer posix.close(fd);
    try posix.setsockopt(fd, posix.SOL.SOCKET, posix.SO.REUSEADDR, &std.mem.toBytes(@as(c_int, 1)));
    const address = std.net.Address.initIp4(.{ 127, 0, 0, 1 }, port);
    try posix.bind(fd, &address.any, address.getOsSockLen());
    try posix.listen(fd, backlog);
    return fd;
}

fn watch(epoll: posix.fd_t, fd: posix.fd_t, interest: u32) !void {
    var event: linux.epoll_event = .{ .events = interest, .data = .{ .fd = fd } };
    try posix.epoll_ctl(epoll, linux.EPOLL.CTL_ADD, fd, &event);
}

fn accept_all(epoll: posix.fd_t, listener: posix.fd_t, connections: []Connection) !void {
    const flags = posix.SOCK.NONBLOCK | posix.SOCK.CLOEXEC;
    while (true) {
        const fd = posix.accept(listener, null, null, flags) catch |err| switch (err) {
            error.WouldBlock => return,
            error.ConnectionAborted => continue,
            else => return err,
        };
        if (fd >= connections.len) {
            posix.close(fd);
            continue;
        }
        const on = std.mem.toBytes(@as(c_int, 1));
        try posix.setsockopt(fd, posix.IPPROTO.TCP, linux.TCP.NODELAY, &on);
        const connection = &connections[@intCast(fd)];
        connection.filled = 0;
        connection.unsent = "";
        try watch(epoll, fd, linux.EPOLL.IN | linux.EPOLL.OUT | linux.EPOLL.RDHUP | linux.EPOLL.ET);
    }
}

/// Sends, answers and receives until the socket would block. Edge-triggered: to stop earlier
/// would be to wait for an event that never comes. `gone`: the client is known to have hung up.
fn advance(fd: posix.fd_t, connection: *Connection, gone: bool) Outcome {
    while (true) {
        if (connection.unsent.len > 0) {
            if (!send_rest(fd, connection)) return .finished;
            if (connection.unsent.len > 0) return .open;
        }
        if (!answer_all(fd, connection)) return .finished;
        if (connection.unsent.len > 0) return .open;
        const room = connection.buffer[connection.filled..];
        // A head larger than the buffer.
        if (room.len == 0) return .finished;
        const received = posix.recv(fd, room, 0) catch |err| switch (err) {
            error.WouldBlock => return .open,
            else => return .finished,
        };
        if (received == 0) return .finished;
        connection.filled += received;
        // Fewer bytes than asked for: the socket is drained (epoll(7), question 9), and what
        // comes later makes a new event. This saves the recv that would say so. An end of file
        // that the event at hand has told is behind these bytes, though, and is told only once.
        if (received < room.len and !gone) {
            if (!answer_all(fd, connection)) return .finished;
            return .open;
        }
    }
}

/// Answers each whole head in the buffer, in order, until a reply does not fit into the socket.
fn answer_all(fd: posix.fd_t, connection: *Connection) bool {
    const received = connection.buffer[0..connection.filled];
    var begin: usize = 0;
    while (connection.unsent.len == 0) {
        const end = head_end(received, begin) orelse break;
        const head = received[begin..end];
        const is_json = std.mem.startsWith(u8, head, "GET /json ");
        connection.unsent = if (is_json) reply_json else reply_text;
        begin = end;
        if (!send_rest(fd, connection)) return false;
    }
    if (begin > 0) {
        const rest = received.len - begin;
        std.mem.copyForwards(u8, connection.buffer[0..rest], received[begin..]);
        connection.filled = rest;
    }
    return true;
}

/// The index behind the empty line that ends the head which starts at `begin`.
fn head_end(received: []const u8, begin: usize) ?usize {
    var position = begin;
    while (std.mem.indexOfScalarPos(u8, received, position, '\r')) |found| {
        if (std.mem.startsWith(u8, received[found..], "\r\n\r\n")) return found + 4;
        position = found + 1;
    }
    return null;
}

/// False when the connection is of no more use.
fn send_rest(fd: posix.fd_t, connection: *Connection) bool {
    assert(connection.unsent.len > 0);
    const sent = posix.send(fd, connection.unsent, posix.MSG.NOSIGNAL) catch |err| switch (err) {
        error.WouldBlock => return true,
        else => return false,
    };
    connection.unsent = connection.unsent[sent..];
    return true;
}
