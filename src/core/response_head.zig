//! The head of a response as the application gives it: checked line by line, written once.
//!
//! What an application may not send is refused here, so that nothing it says can split a response
//! (RFC 9112 11.1) or speak for the connection (PEP 3333, "Other HTTP Features"). The server's own
//! fields are added when the framing is known. Owner: a worker; used for one response at a time and
//! kept for the next. GIL: not needed.

const std = @import("std");
const scanner = @import("scanner.zig");
const date_module = @import("date.zig");
const field_values = @import("field_values.zig");
const request_ids = @import("request_id.zig");

pub const Error = error{
    /// Not "200 Reason": three digits from 200 to 999, then a space.
    BadStatus,
    /// CR, LF, NUL or another control in the status or a value.
    ControlCharacter,
    BadFieldName,
    /// A field that belongs to the connection, which is the server's (PEP 3333).
    HopByHopField,
    BadContentLength,
    DuplicateContentLength,
    HeadTooLarge,
    OutOfMemory,
};

pub fn describe(err: Error) [:0]const u8 {
    return switch (err) {
        error.BadStatus => "the status must be three digits from 200 to 999, a space and a reason",
        error.ControlCharacter => "CR, LF, NUL or another control character in a response field",
        error.BadFieldName => "the name of a response field is not a token",
        error.HopByHopField => "a field of the connection or of the framing is the server's to " ++
            "send (PEP 3333, Other HTTP Features); leave it out",
        error.BadContentLength => "Content-Length is not a number of bytes",
        error.DuplicateContentLength => "Content-Length is given twice",
        error.HeadTooLarge => "the response head is larger than 1 MiB",
        error.OutOfMemory => "out of memory for the response head",
    };
}

/// Room for what `explain` writes.
pub const explanation_bytes_max = 512;
const shown_bytes_max = 100;

/// What is wrong with a field, or with the status where `name` is empty, and which rule says so; in
/// ASCII. Ends with a zero byte.
pub fn explain(
    buffer: *[explanation_bytes_max]u8,
    err: Error,
    name: []const u8,
    value: []const u8,
) [:0]const u8 {
    var writer: std.Io.Writer = .fixed(buffer);
    write_explanation(&writer, err, name, value) catch return describe(err);
    return buffer[0 .. writer.end - 1 :0];
}

fn write_explanation(
    writer: *std.Io.Writer,
    err: Error,
    name: []const u8,
    value: []const u8,
) std.Io.Writer.Error!void {
    try writer.writeAll(if (name.len == 0) "status" else "response field ");
    try write_printable(writer, name);
    try writer.writeAll(if (name.len == 0) " \"" else ": ");
    try write_printable(writer, value);
    if (name.len == 0) try writer.writeByte('"');
    try writer.print(": {s}\x00", .{describe(err)});
}

fn write_printable(writer: *std.Io.Writer, text: []const u8) std.Io.Writer.Error!void {
    for (text[0..@min(text.len, shown_bytes_max)]) |byte| switch (byte) {
        ' '...'~' => try writer.writeByte(byte),
        else => try writer.print("\\x{x:0>2}", .{byte}),
    };
    if (text.len > shown_bytes_max) try writer.writeAll("...");
}

/// Fields of the connection's that frameworks and tutorials set: they are left out of the response,
/// and cost the application nothing.
pub const Dropped = enum { connection, keep_alive, proxy_connection };

const bytes_max = 1024 * 1024;
const bytes_first = 4096;
/// What `finish` may add: date, server, framing and connection fields, the request's id.
const finish_bytes_max = 256 + 16 + request_ids.given_bytes_max;

/// How the end of the response body is known (RFC 9112 6.3).
pub const Framing = union(enum) {
    /// No body whatever the fields say: HEAD, 204, 304.
    none,
    content_length: u64,
    chunked,
    until_close,
};

pub const Persistence = enum {
    /// The default of HTTP/1.1 goes without saying.
    implied,
    /// HTTP/1.0 must be told (RFC 9112 9.3).
    keep_alive,
    close,
};

pub const ResponseHead = struct {
    gpa: std.mem.Allocator,
    buffer: []u8 = &.{},
    len: usize = 0,
    status: u16 = 0,
    content_length: ?u64 = null,
    has_date: bool = false,
    has_server: bool = false,
    has_request_id: bool = false,
    /// Fields that the application gave and that were left out.
    dropped: std.EnumSet(Dropped) = .initEmpty(),
    /// One of them asked that the connection be closed after the response.
    asks_close: bool = false,
    /// Told to the client, unless the application names one itself; empty for none.
    request_id: []const u8 = "",

    pub fn init(gpa: std.mem.Allocator) ResponseHead {
        return .{ .gpa = gpa };
    }

    pub fn deinit(self: *ResponseHead) void {
        self.gpa.free(self.buffer);
    }

    /// Gives back the memory that nothing was written to.
    pub fn shrink(self: *ResponseHead) void {
        self.buffer = self.gpa.realloc(self.buffer, self.len) catch return;
    }

    /// Starts over with a status such as "404 Not Found", in Latin-1.
    pub fn begin(self: *ResponseHead, status: []const u8) Error!void {
        self.len = 0;
        self.content_length = null;
        self.has_date = false;
        self.has_server = false;
        self.has_request_id = false;
        self.dropped = .initEmpty();
        self.asks_close = false;
        if (status.len < 3) return error.BadStatus;
        var code: u16 = 0;
        for (status[0..3]) |byte| {
            if (!scanner.is_digit(byte)) return error.BadStatus;
            code = code * 10 + (byte - '0');
        }
        // A final response cannot be interim: its client would go on waiting.
        if (code < 200) return error.BadStatus;
        if (status.len > 3 and status[3] != ' ') return error.BadStatus;
        if (scanner.find_control(status, 3) != status.len) return error.ControlCharacter;
        self.status = code;
        try self.append("HTTP/1.1 ");
        try self.append(status);
        // The space stands even where no reason follows (RFC 9112 4).
        try self.append(if (status.len == 3) " \r\n" else "\r\n");
    }

    /// Starts an interim response that tells of links before the final one (RFC 8297).
    pub fn begin_early_hints(self: *ResponseHead) Error!void {
        self.len = 0;
        self.content_length = null;
        self.status = 103;
        try self.append("HTTP/1.1 103 Early Hints\r\n");
    }

    /// Ends it. Returns the whole, valid until `begin`.
    pub fn finish_early_hints(self: *ResponseHead) Error![]const u8 {
        try self.append("\r\n");
        return self.written();
    }

    /// Adds one field line, in Latin-1.
    pub fn add(self: *ResponseHead, name: []const u8, value: []const u8) Error!void {
        if (!scanner.is_token(name)) return error.BadFieldName;
        if (scanner.find_control(value, 0) != value.len) return error.ControlCharacter;
        if (try self.note(name, value) == .not_written) return;
        const line = try self.reserve(name.len + value.len + 4);
        @memcpy(line[0..name.len], name);
        line[name.len] = ':';
        line[name.len + 1] = ' ';
        @memcpy(line[name.len + 2 ..][0..value.len], value);
        line[line.len - 2] = '\r';
        line[line.len - 1] = '\n';
    }

    const Line = enum { written, not_written };

    /// Looks at the names that mean something to the server, by their lengths first.
    fn note(self: *ResponseHead, name: []const u8, value: []const u8) Error!Line {
        const equals = scanner.equals_ignoring_case;
        switch (name.len) {
            2 => if (equals(name, "te")) return error.HopByHopField,
            4 => if (equals(name, "date")) {
                self.has_date = true;
            },
            6 => if (equals(name, "server")) {
                self.has_server = true;
            },
            7 => if (equals(name, "upgrade")) return error.HopByHopField,
            // RFC 2616 13.5.1 has "Trailers", and PEP 3333 refers to it; the field is "Trailer".
            8 => if (equals(name, "trailers")) return error.HopByHopField,
            10 => if (equals(name, "connection")) {
                var options: field_values.Elements = .{ .rest = value };
                while (options.next()) |option| {
                    if (equals(option, "close")) self.asks_close = true;
                }
                return self.drop(.connection);
            } else if (equals(name, "keep-alive")) {
                return self.drop(.keep_alive);
            },
            12 => if (equals(name, "x-request-id")) {
                self.has_request_id = true;
            },
            14 => if (equals(name, "content-length")) {
                if (self.content_length != null) return error.DuplicateContentLength;
                self.content_length = try parse_length(value);
                return .not_written; // by `finish`
            },
            16 => if (equals(name, "proxy-connection")) return self.drop(.proxy_connection),
            17 => if (equals(name, "transfer-encoding")) return error.HopByHopField,
            18 => if (equals(name, "proxy-authenticate")) return error.HopByHopField,
            19 => if (equals(name, "proxy-authorization")) return error.HopByHopField,
            else => {},
        }
        return .written;
    }

    fn drop(self: *ResponseHead, field: Dropped) Line {
        self.dropped.insert(field);
        return .not_written;
    }

    fn parse_length(value: []const u8) Error!u64 {
        const digits = scanner.trim_whitespace(value);
        if (digits.len == 0 or digits.len > 18) return error.BadContentLength;
        var number: u64 = 0;
        for (digits) |byte| {
            if (!scanner.is_digit(byte)) return error.BadContentLength;
            number = number * 10 + (byte - '0');
        }
        return number;
    }

    /// Whether this status never has a body (RFC 9110 15.3.5, 15.4.5).
    pub fn is_bodiless(self: *const ResponseHead) bool {
        return self.status == 204 or self.status == 304;
    }

    /// Adds the server's fields and the empty line. Returns the whole head, valid until `begin`.
    pub fn finish(
        self: *ResponseHead,
        framing: Framing,
        persistence: Persistence,
        date: *const [date_module.length]u8,
    ) Error![]const u8 {
        const room = try self.reserve(finish_bytes_max);
        var rest: []u8 = room;
        if (!self.has_date) {
            put(&rest, "Date: ");
            put(&rest, date);
            put(&rest, "\r\n");
        }
        if (!self.has_server) put(&rest, "Server: serve-zig\r\n");
        if (!self.has_request_id and self.request_id.len > 0) {
            put(&rest, "X-Request-Id: ");
            put(&rest, self.request_id);
            put(&rest, "\r\n");
        }
        switch (framing) {
            .content_length => |length| put_length(&rest, length),
            .chunked => put(&rest, "Transfer-Encoding: chunked\r\n"),
            // What GET would have (HEAD) or 200 had (304); never with 204 (RFC 9110 8.6).
            .none => if (self.status != 204) {
                if (self.content_length) |length| put_length(&rest, length);
            },
            .until_close => {},
        }
        switch (persistence) {
            .implied => {},
            .keep_alive => put(&rest, "Connection: keep-alive\r\n"),
            .close => put(&rest, "Connection: close\r\n"),
        }
        put(&rest, "\r\n");
        self.len -= rest.len;
        return self.buffer[0..self.len];
    }

    fn put_length(rest: *[]u8, length: u64) void {
        put(rest, "Content-Length: ");
        put_number(rest, length);
        put(rest, "\r\n");
    }

    /// Room behind what is written, for a small body to leave with the head in one send.
    pub fn tail(self: *ResponseHead, bytes: usize) error{OutOfMemory}![]u8 {
        const needed = self.len + bytes;
        if (needed > self.buffer.len) try self.enlarge(needed);
        defer self.len = needed;
        return self.buffer[self.len..needed];
    }

    pub fn written(self: *const ResponseHead) []const u8 {
        return self.buffer[0..self.len];
    }

    fn append(self: *ResponseHead, bytes: []const u8) Error!void {
        @memcpy(try self.reserve(bytes.len), bytes);
    }

    fn reserve(self: *ResponseHead, bytes: usize) Error![]u8 {
        const needed = self.len + bytes;
        if (needed > self.buffer.len and needed > bytes_max) return error.HeadTooLarge;
        return self.tail(bytes);
    }

    fn enlarge(self: *ResponseHead, needed: usize) error{OutOfMemory}!void {
        const size = @max(bytes_first, std.math.ceilPowerOfTwo(usize, needed) catch needed);
        self.buffer = try self.gpa.realloc(self.buffer, size);
    }
};

/// Writes `bytes` at the front of `rest` and moves `rest` behind them.
pub fn put(rest: *[]u8, bytes: []const u8) void {
    @memcpy(rest.*[0..bytes.len], bytes);
    rest.* = rest.*[bytes.len..];
}

/// The same for a decimal number.
pub fn put_number(rest: *[]u8, number: u64) void {
    var digits: [20]u8 = undefined;
    var start: usize = digits.len;
    var value = number;
    while (true) {
        start -= 1;
        digits[start] = '0' + @as(u8, @intCast(value % 10));
        value /= 10;
        if (value == 0) break;
    }
    put(rest, digits[start..]);
}

const testing = std.testing;
const test_date = "Sun, 06 Nov 1994 08:49:37 GMT";

test "a head is written with the server's fields behind the application's" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    try head.begin("200 OK");
    try head.add("Content-Type", "text/plain");
    const bytes = try head.finish(.{ .content_length = 13 }, .implied, test_date);
    try testing.expectEqualStrings("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: " ++
        test_date ++ "\r\nServer: serve-zig\r\nContent-Length: 13\r\n\r\n", bytes);
}

test "the application's own Date, Server and Content-Length stand" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    try head.begin("299 Own Words");
    try head.add("date", "then");
    try head.add("SERVER", "mine");
    try head.add("Content-Length", "7");
    const bytes = try head.finish(.{ .content_length = 7 }, .close, test_date);
    try testing.expectEqualStrings("HTTP/1.1 299 Own Words\r\ndate: then\r\nSERVER: mine\r\n" ++
        "Content-Length: 7\r\nConnection: close\r\n\r\n", bytes);
}

test "the request's id is there once, the application's own before ours" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    const longest = "x" ** request_ids.given_bytes_max;
    head.request_id = longest;
    try head.begin("200 OK");
    const own = try head.finish(.{ .content_length = 1 << 60 }, .keep_alive, test_date);
    try testing.expect(std.mem.indexOf(u8, own, "\r\nX-Request-Id: " ++ longest ++ "\r\n") != null);
    try head.begin("200 OK");
    try head.add("x-request-ID", "mine");
    const given = try head.finish(.chunked, .close, test_date);
    try testing.expect(std.mem.indexOf(u8, given, "\r\nx-request-ID: mine\r\n") != null);
    try testing.expect(std.mem.indexOf(u8, given, longest) == null);
}

test "statuses" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    for ([_][]const u8{
        "", "2", "20", "2x0 OK", "200OK", "100 Continue", "199 Odd", " 200 OK",
    }) |bad| {
        try testing.expectError(error.BadStatus, head.begin(bad));
    }
    for ([_][]const u8{ "200 O\nK", "200 \r\nX: y", "200 \x00" }) |bad| {
        try testing.expectError(error.ControlCharacter, head.begin(bad));
    }
    try head.begin("200");
    try testing.expectEqualStrings("HTTP/1.1 200 \r\n", head.written());
    try head.begin("404 caf\xe9");
    try testing.expectEqual(404, head.status);
}

test "fields that an application may not send" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    try head.begin("200 OK");
    try testing.expectError(error.BadFieldName, head.add("", "x"));
    try testing.expectError(error.BadFieldName, head.add("a b", "x"));
    try testing.expectError(error.BadFieldName, head.add("a:", "x"));
    try testing.expectError(error.ControlCharacter, head.add("a", "x\r\nSet-Cookie: y"));
    try testing.expectError(error.ControlCharacter, head.add("a", "x\ny"));
    try testing.expectError(error.ControlCharacter, head.add("a", "\x00"));
    for ([_][]const u8{
        "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailers",
        "Transfer-Encoding",  "UPGRADE",
    }) |name| try testing.expectError(error.HopByHopField, head.add(name, "x"));
    for ([_][]const u8{ "", "-1", "+1", "1,1", "0x1", "1 1", "1234567890123456789" }) |value| {
        try testing.expectError(error.BadContentLength, head.add("Content-Length", value));
    }
    try head.add("Content-Length", " 10 ");
    try testing.expectEqual(10, head.content_length.?);
    try testing.expectError(error.DuplicateContentLength, head.add("content-length", "10"));
}

test "fields of the connection are left out, and close is obeyed" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    try head.begin("200 OK");
    try head.add("connection", "keep-alive");
    try head.add("Keep-Alive", "timeout=5");
    try head.add("Proxy-Connection", "keep-alive");
    try testing.expectEqualStrings("HTTP/1.1 200 OK\r\n", head.written());
    try testing.expectEqual(3, head.dropped.count());
    try testing.expect(!head.asks_close);
    try head.add("Connection", "x-closed");
    try testing.expect(!head.asks_close);
    try head.add("Connection", "upgrade , CLOSE");
    try testing.expect(head.asks_close);
    try head.begin("200 OK");
    try testing.expectEqual(0, head.dropped.count());
    try testing.expect(!head.asks_close);
}

test "an error names the field, its value and the rule" {
    var buffer: [explanation_bytes_max]u8 = undefined;
    const named = explain(&buffer, error.HopByHopField, "Transfer-Encoding", "chunked");
    const begin = "response field Transfer-Encoding: chunked: ";
    try testing.expect(std.mem.startsWith(u8, named, begin));
    try testing.expect(std.mem.indexOf(u8, named, "PEP 3333") != null);
    const long: [4096]u8 = @splat(0xff);
    const cut = explain(&buffer, error.ControlCharacter, &long, &long);
    try testing.expect(cut.len > 0);
    const of_status = explain(&buffer, error.BadStatus, "", "20\n");
    try testing.expect(std.mem.startsWith(u8, of_status, "status \"20\\x0a\": the status must"));
}

test "a head may grow to its limit" {
    var head: ResponseHead = .init(testing.allocator);
    defer head.deinit();
    try head.begin("200 OK");
    const value: [8192]u8 = @splat('x');
    var count: usize = 0;
    while (true) : (count += 1) head.add("X-Long", &value) catch |err| {
        try testing.expectEqual(error.HeadTooLarge, err);
        break;
    };
    try testing.expect(count > 100);
}

test "numbers" {
    var buffer: [32]u8 = undefined;
    for ([_]u64{ 0, 9, 10, 12345, std.math.maxInt(u64) }) |number| {
        var rest: []u8 = &buffer;
        put_number(&rest, number);
        var expected: [32]u8 = undefined;
        const text = try std.fmt.bufPrint(&expected, "{d}", .{number});
        try testing.expectEqualStrings(text, buffer[0 .. buffer.len - rest.len]);
    }
}
