//! The server's own answers: requests that are refused before or instead of the application.
//!
//! Each has a length and closes the connection (RFC 9112 9.6): after a message that could not be
//! understood nobody knows where the next one begins. Pure; any thread; GIL: not needed.

const std = @import("std");
const date_module = @import("date.zig");

/// Enough for any answer that `write` makes.
pub const bytes_max = 768;

pub const Refusal = struct {
    status: u16,
    /// One word for the log and the metric's label; the client gets it in the body.
    reason: []const u8,
    /// Seconds for Retry-After; 0 for none.
    retry_after: u32 = 0,
    /// The request was a HEAD: no body (RFC 9110 9.3.2).
    without_body: bool = false,
    /// For X-Request-Id; empty for none.
    request_id: []const u8 = "",
};

pub fn phrase_of(status: u16) []const u8 {
    return switch (status) {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        else => "Error",
    };
}

pub fn write(
    buffer: *[bytes_max]u8,
    refusal: Refusal,
    date: *const [date_module.length]u8,
) []const u8 {
    var body_storage: [128]u8 = undefined;
    const phrase = phrase_of(refusal.status);
    const body = std.fmt.bufPrint(&body_storage, "{d} {s}: {s}\n", .{
        refusal.status,
        phrase,
        refusal.reason,
    }) catch "";
    var retry_storage: [32]u8 = undefined;
    const retry = if (refusal.retry_after == 0) "" else std.fmt.bufPrint(
        &retry_storage,
        "Retry-After: {d}\r\n",
        .{refusal.retry_after},
    ) catch "";
    const has_id = refusal.request_id.len > 0;
    return std.fmt.bufPrint(buffer, "HTTP/1.1 {d} {s}\r\nDate: {s}\r\nServer: serve-zig\r\n" ++
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {d}\r\n{s}" ++
        "{s}{s}{s}Connection: close\r\n\r\n{s}", .{
        refusal.status,
        phrase,
        date,
        body.len,
        retry,
        if (has_id) "X-Request-Id: " else "",
        refusal.request_id,
        if (has_id) "\r\n" else "",
        if (refusal.without_body) "" else body,
    }) catch "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
}

const testing = std.testing;

test "a refusal has a length, a date and closes" {
    var buffer: [bytes_max]u8 = undefined;
    const date = date_module.format(784111777);
    try testing.expectEqualStrings("HTTP/1.1 400 Bad Request\r\n" ++
        "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: serve-zig\r\n" ++
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 25\r\n" ++
        "Connection: close\r\n\r\n400 Bad Request: bare_lf\n", //
        write(&buffer, .{ .status = 400, .reason = "bare_lf" }, &date));
}

test "a refusal names the request, with the longest id that there is" {
    var buffer: [bytes_max]u8 = undefined;
    const date = date_module.format(784111777);
    const id = "x" ** @import("request_id.zig").given_bytes_max;
    const text = write(&buffer, .{
        .status = 431,
        .reason = "unsupported_transfer_coding",
        .retry_after = 1,
        .request_id = id,
    }, &date);
    try testing.expect(std.mem.indexOf(u8, text, "\r\nX-Request-Id: " ++ id ++ "\r\n") != null);
    try testing.expect(std.mem.startsWith(u8, text, "HTTP/1.1 431 "));
}

test "an overloaded server says when to come back, and HEAD gets no body" {
    var buffer: [bytes_max]u8 = undefined;
    const date = date_module.format(784111777);
    const text = write(&buffer, .{
        .status = 503,
        .reason = "queue_full",
        .retry_after = 1,
        .without_body = true,
    }, &date);
    try testing.expect(std.mem.indexOf(u8, text, "\r\nRetry-After: 1\r\n") != null);
    try testing.expect(std.mem.endsWith(u8, text, "\r\n\r\n"));
    try testing.expect(std.mem.indexOf(u8, text, "Content-Length: 0\r\n") == null);
}
