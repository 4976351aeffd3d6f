//! Runs the whole server without Python: real sockets, real threads, a fake application.
//!
//! Each test ends with a drain that must give every connection, exchange and descriptor back. Where
//! the order of things matters, a test waits for a count of the server or of the application and
//! not for time to pass. Timeouts of the server are small where they are tested, else large.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Client = fixture_module.Client;
const Fixture = fixture_module.Fixture;
const Options = @import("server.zig").Options;

const gpa = testing.allocator;

test {
    _ = @import("body_test.zig");
    _ = @import("reply_test.zig");
    _ = @import("overdue_test.zig");
    _ = @import("server_files_test.zig");
    _ = @import("server_end_test.zig");
    _ = @import("server_stress_test.zig");
    _ = @import("faults_test.zig");
    _ = @import("server_suspend_test.zig");
}

/// For tests in which no timeout but the drain's may strike.
const calm: Options = .{
    .threads = 4,
    .connections = 64,
    .drain_timeout_ms = fixture_module.patience_ms,
};

fn with(comptime changes: anytype) Options {
    var options = calm;
    inline for (std.meta.fields(@TypeOf(changes))) |field| {
        @field(options, field.name) = @field(changes, field.name);
    }
    return options;
}

/// With sockets that a response of some hundred kilobytes fills.
fn serve_narrow(options: Options) !*Fixture {
    return Fixture.serve(.{ .options = options, .send_buffer_bytes = 4096 });
}

const narrow = 4096;

// ---- One request after the other ---------------------------------------------------------------

test "server: a connection is kept for many requests" {
    for ([_]@FieldType(fixture_module.Setup, "family"){ .tcp, .unix }) |family| {
        const fixture = try Fixture.serve(.{ .options = calm, .family = family });
        defer fixture.deinit();
        var client = try fixture.connect();
        defer client.close();
        for (0..50) |_| {
            try client.ask("/small", 200, "hello");
            try client.ask("/none", 204, "");
            try client.ask("/unknown", 404, "?");
        }
        try testing.expectEqual(1, fixture.server.counts().connections);
        client.close();
        try fixture.finish();
        try fixture.expect_no_descriptors();
    }
}

test "server: pipelined requests are answered in order" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    var text: std.ArrayList(u8) = .empty;
    defer text.deinit(gpa);
    const count = 700;
    for (0..count) |index| {
        if (index % 7 == 3) {
            try text.print(gpa, "GET /large/{d} HTTP/1.1\r\nHost: a\r\n\r\n", .{index});
        } else {
            try text.print(gpa, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n" ++
                "{d:0>5}", .{index});
        }
    }
    try client.send(text.items);
    for (0..count) |index| {
        if (index % 7 == 3) {
            try client.expect_pattern(index);
        } else {
            var number: [5]u8 = undefined;
            try client.expect(200, try std.fmt.bufPrint(&number, "{d:0>5}", .{index}));
        }
    }
    client.close();
    try fixture.finish();
}

test "server: a request may come in two parts, split anywhere" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    const texts = [_][]const u8{
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\ncontent",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" ++
            "3;a=b\r\ncon\r\n4\r\ntent\r\n0\r\nT: x\r\n\r\n",
        "\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\ncontent",
    };
    for (texts) |text| {
        for (1..text.len) |at| {
            try client.send(text[0..at]);
            sys.sleep_ms(1);
            try client.send(text[at..]);
            try client.expect(200, "content");
        }
        for (0..text.len) |at| try client.send(text[at..][0..1]);
        try client.expect(200, "content");
    }
    client.close();
    try fixture.finish();
}

test "server: bytes that come while the handler runs are the next request" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.get("/gate");
    try fixture.expect_app("at_gate", 1);
    try client.get("/large/70000");
    try client.send("GET /sm");
    sys.sleep_ms(20);
    fixture.app.gate.set();
    try client.expect(200, "passed");
    try client.expect_pattern(70_000);
    try client.send("all HTTP/1.1\r\nHost: a\r\n\r\n");
    try client.expect(200, "hello");
    client.close();
    try fixture.finish();
}

test "server: HTTP/1.0 is kept only when asked, and a stream ends with its connection" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var first = try fixture.connect();
    defer first.close();
    try first.send("GET /small HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    const answer = try first.response();
    defer answer.deinit();
    try testing.expectEqualStrings("keep-alive", answer.field("Connection").?);
    try first.send("GET /small HTTP/1.0\r\n\r\n");
    try first.expect(200, "hello");
    try first.expect_end();
    var second = try fixture.connect();
    defer second.close();
    try second.send("GET /stream/5/3000 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    try second.expect_pattern(15_000);
    first.close();
    second.close();
    try fixture.finish();
}

test "server: a connection ends after so many requests" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .requests_per_connection = 3 }) });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("GET /small HTTP/1.1\r\nHost: a\r\n\r\n" ** 5);
    for (0..3) |index| {
        const answer = try client.response();
        defer answer.deinit();
        try testing.expectEqual(index == 2, answer.closes);
    }
    try client.expect_end();
    client.close();
    try fixture.finish();
}

test "server: a request sent while the server ends the connection costs no response" {
    const fixture = try Fixture.serve(.{
        .options = with(.{ .requests_per_connection = 1 }),
        .send_buffer_bytes = 400_000,
    });
    defer fixture.deinit();
    var client = try fixture.connect_with(narrow);
    defer client.close();
    try client.get("/large/200000");
    try testing.expect(sys.wait_ready(client.fd, .readable, fixture_module.patience_ms));
    sys.sleep_ms(20);
    // The client has not read yet that this would be the last; most of the response is in the
    // server's kernel, which drops it when the connection is reset (RFC 9112 9.6).
    try client.get("/small");
    sys.sleep_ms(5);
    try client.expect_pattern(200_000);
    try client.expect_end();
    client.close();
    try fixture.finish();
}

// ---- Bodies ------------------------------------------------------------------------------------

/// Sends `length` bytes of the pattern, in chunks of `chunk_bytes` unless that is 0.
fn send_body(client: *Client, path: []const u8, length: usize, chunk_bytes: usize) !void {
    var text: std.ArrayList(u8) = .empty;
    defer text.deinit(gpa);
    const body = try gpa.alloc(u8, length);
    defer gpa.free(body);
    fixture_module.fill_pattern(body, 0);
    try text.print(gpa, "POST {s} HTTP/1.1\r\nHost: a\r\n", .{path});
    if (chunk_bytes == 0) {
        try text.print(gpa, "Content-Length: {d}\r\n\r\n", .{length});
        try text.appendSlice(gpa, body);
    } else {
        try text.appendSlice(gpa, "Transfer-Encoding: chunked\r\n\r\n");
        var at: usize = 0;
        while (at < length) {
            const piece = body[at..@min(length, at + chunk_bytes)];
            try text.print(gpa, "{x}\r\n", .{piece.len});
            try text.appendSlice(gpa, piece);
            try text.appendSlice(gpa, "\r\n");
            at += piece.len;
        }
        try text.appendSlice(gpa, "0\r\n\r\n");
    }
    try client.send(text.items);
}

test "server: bodies in place, in memory and in a file, with a length and in chunks" {
    for ([_]u64{ 64 * 1024, 0 }) |memory_bytes| {
        var options = calm;
        options.body_memory_bytes = memory_bytes;
        const fixture = try Fixture.serve(.{ .options = options });
        defer fixture.deinit();
        var client = try fixture.connect();
        defer client.close();
        const sizes = [_]usize{
            0,      1,      100,    10_000,  16_200,    16_384,
            16_385, 32_768, 65_535, 65_536,  65_537,    65_600,
            81_920, 81_930, 90_000, 131_072, 1_000_000,
        };
        for (sizes) |size| {
            for ([_]usize{ 0, 1000, 16_384, 100_000 }) |chunk_bytes| {
                try send_body(&client, "/count", size, chunk_bytes);
                try client.get("/small");
                var expected: [32]u8 = undefined;
                try client.expect(200, try std.fmt.bufPrint(&expected, "{d} intact", .{size}));
                try client.expect(200, "hello");
            }
        }
        client.close();
        try fixture.finish();
        try fixture.expect_no_descriptors();
    }
}

test "server: a body in tiny chunks, and one that nobody reads" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_memory_bytes = 1000 }) });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try send_body(&client, "/count", 20_000, 1);
    try client.expect(200, "20000 intact");
    try send_body(&client, "/small", 20_000, 7);
    try client.expect(200, "hello");
    try send_body(&client, "/small", 20_000, 0);
    try client.expect(200, "hello");
    client.close();
    try fixture.finish();
}

test "server: a body that is too large is refused before it comes, or when it is known" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_bytes = 50_000 }) });
    defer fixture.deinit();
    for ([_]usize{ 0, 10_000, 60_000 }) |chunk_bytes| {
        var client = try fixture.connect();
        defer client.close();
        try send_body(&client, "/count", 50_000, chunk_bytes);
        try client.expect(200, "50000 intact");
        try send_body(&client, "/count", 50_001, chunk_bytes);
        try client.expect_status(413);
        try client.expect_end();
    }
    var client = try fixture.connect();
    defer client.close();
    try client.send("POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 50001\r\n\r\n");
    try client.expect_status(413);
    try client.expect_end();
    client.close();
    try fixture.finish();
}

test "server: 100 (Continue) is sent once, and not where the body has come already" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    const head = "Host: a\r\nExpect: 100-continue\r\n";
    const framings = [_][2][]const u8{
        .{ "Content-Length: 7\r\n\r\n", "content" },
        .{ "Transfer-Encoding: chunked\r\n\r\n", "3\r\ncon\r\n4\r\ntent\r\n0\r\n\r\n" },
    };
    for (framings) |framing| {
        var client = try fixture.connect();
        defer client.close();
        try client.send("POST /echo HTTP/1.1\r\n" ++ head);
        try client.send(framing[0]);
        try client.expect(100, "");
        try client.expect_silence(10);
        for (0..framing[1].len) |at| try client.send(framing[1][at..][0..1]);
        try client.expect(200, "content");
        // The body came along: nobody waits for 100.
        try client.send("\r\n");
        var text: [200]u8 = undefined;
        try client.send(try std.fmt.bufPrint(&text, "POST /echo HTTP/1.1\r\n{s}{s}{s}", .{
            head,
            framing[0],
            framing[1],
        }));
        try client.expect(200, "content");
    }
    try fixture.finish();
}

test "server: 100 (Continue) waits for room behind an answer that fills the socket" {
    const fixture = try Fixture.serve(.{ .options = calm, .family = .unix });
    defer fixture.deinit();
    // With Linux's own size of a socket's buffer some of these answers leave whole and fill it.
    var size: usize = 190_000;
    while (size < 240_000) : (size += 1000) {
        errdefer std.debug.print("behind {d} bytes\n", .{size});
        var client = try fixture.connect();
        defer client.close();
        var path: [32]u8 = undefined;
        try client.get(try std.fmt.bufPrint(&path, "/large/{d}", .{size}));
        try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
            "Transfer-Encoding: chunked\r\n\r\n");
        sys.sleep_ms(2);
        try client.expect_pattern(size);
        try client.expect(100, "");
        try client.send("2\r\nok\r\n0\r\n\r\n");
        try client.expect(200, "ok");
    }
    try fixture.finish();
}

test "server: 100 (Continue) is for the application to send when it reads, if there is a length" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("POST /small HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Content-Length: 7\r\n\r\n");
    // The application did not ask: the client keeps its body.
    const answer = try client.response();
    defer answer.deinit();
    try testing.expectEqual(200, answer.status);
    try testing.expect(answer.closes);
    try client.expect_end();
    try fixture.finish();
}

test "server: a chunked body is asked for before the application is called" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_bytes = 6 }) });
    defer fixture.deinit();
    const head = "POST /small HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Transfer-Encoding: chunked\r\n\r\n";
    const cases = [_]struct { []const u8, u16 }{
        .{ "6\r\nwhole.\r\n0\r\n\r\n", 200 },
        .{ "0\r\n\r\n", 200 },
        .{ "7\r\n", 413 },
        .{ "x\r\n", 400 },
    };
    for (cases, 0..) |case, number| {
        var client = try fixture.connect();
        defer client.close();
        try client.send(head);
        try client.expect(100, "");
        try client.expect_silence(10);
        try testing.expectEqual(@min(number, 2), fixture.app.calls.load(.monotonic));
        try client.send(case[0]);
        try client.expect_status(case[1]);
    }
    try testing.expectEqual(2, fixture.app.calls.load(.monotonic));
    try fixture.finish();
}

test "server: 100 (Continue) does not come in the middle of a response" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("POST /late HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Content-Length: 4\r\n\r\n");
    try fixture.expect_app("at_gate", 1);
    try client.send("body");
    try client.expect(200, "begun body");
    client.close();
    try fixture.finish();
}

test "server: a client that promised a body and leaves ends the read" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    for (0..4) |how| {
        var client = try fixture.connect();
        defer client.close();
        try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
            "Content-Length: 7\r\n\r\n");
        try client.expect(100, "");
        try client.send("con");
        switch (how) {
            0 => client.close(),
            1 => client.reset(),
            else => {
                client.half_close();
                try client.expect_status(500);
                try client.expect_end();
            },
        }
    }
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

// ---- What is refused ---------------------------------------------------------------------------

test "server: half of the threads wait for clients that were asked to continue" {
    const fixture = try Fixture.serve(.{ .options = .{ .threads = 2 } });
    defer fixture.deinit();
    const head = "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
        "Content-Length: 3\r\n\r\n";
    var clients: [3]Client = undefined;
    for (&clients) |*client| client.* = try fixture.connect();
    defer for (&clients) |*client| client.close();
    // The first one's handler asks for its body and waits; the others are asked without one.
    for (&clients) |*client| {
        try client.send(head);
        try client.expect_status(100);
    }
    try testing.expectEqual(1, fixture.app.calls.load(.monotonic));
    try testing.expectEqual(1, fixture.server.streams.count.load(.monotonic));
    for (&clients) |*client| {
        try client.send("abc");
        try client.expect(200, "abc");
    }
    for (0..fixture_module.patience_ms) |_| {
        if (fixture.server.streams.count.load(.monotonic) == 0) break;
        sys.sleep_ms(1);
    }
    try testing.expectEqual(0, fixture.server.streams.count.load(.monotonic));
    try fixture.finish();
}

test "server: what cannot be understood is answered and the connection ends in order" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    const post = "POST /echo HTTP/1.1\r\nHost: a\r\n";
    const cases = [_]struct { []const u8, u16 }{
        .{ "GET /\r\n\r\n", 400 },
        .{ "GET / HTTP/1.1\r\n\r\n", 400 },
        .{ "GET / HTTP/1.1\nHost: a\n\n", 400 },
        .{ "\x16\x03\x01\x02\x00", 400 },
        .{ "GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505 },
        .{ "GET /" ++ "a" ** 9000, 414 },
        .{ "GET / HTTP/1.1\r\nHost: a\r\nA: " ++ "a" ** 70_000, 431 },
        .{ "GET / HTTP/1.1\r\nHost: a\r\n" ++ "A: b\r\n" ** 200, 431 },
        .{ "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501 },
        .{ "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 421 },
        .{ "POST hTTpS://a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" ++
            "Content-Length: 1\r\n\r\n", 421 },
        .{ post ++ "Expect: miracles\r\n\r\n", 417 },
        .{ post ++ "Transfer-Encoding: gzip\r\n\r\n", 501 },
        .{ post ++ "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400 },
        .{ post ++ "Transfer-Encoding: chunked\r\n\r\nx\r\n", 400 },
        .{ post ++ "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400 },
        .{ post ++ "Transfer-Encoding: chunked\r\n\r\n0\r\nA: " ++ "a" ** 70_000, 431 },
    };
    for (cases) |case| {
        var client = try fixture.connect();
        defer client.close();
        // What was right before it is answered first.
        try client.send("GET /small HTTP/1.1\r\nHost: a\r\n\r\n");
        try client.send(case[0]);
        try client.expect(200, "hello");
        const answer = try client.response();
        defer answer.deinit();
        try testing.expectEqual(case[1], answer.status);
        try testing.expect(answer.closes);
        try client.expect_end();
    }
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: who is refused while sending much can still read why" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_bytes = 1000 }) });
    defer fixture.deinit();
    const bytes = try gpa.alloc(u8, 3 * 1024 * 1024);
    defer gpa.free(bytes);
    @memset(bytes, 'x');
    for ([_]bool{ false, true }) |half_closes| {
        var client = try fixture.connect();
        defer client.close();
        try client.send("POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 3145728\r\n\r\n");
        try client.send(bytes);
        if (half_closes) client.half_close();
        try client.expect_status(413);
        try client.expect_end();
    }
    try fixture.finish();
}

test "server: a HEAD that is refused gets no body" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_bytes = 1000 }) });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
    const answer = try client.response_to("HEAD");
    defer answer.deinit();
    try testing.expectEqual(413, answer.status);
    try client.expect_end();
    client.close();
    try fixture.finish();
}

// ---- Applications that fail --------------------------------------------------------------------

test "server: a handler that fails before its response gives 500, later a broken response" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var first = try fixture.connect();
    defer first.close();
    try first.ask("/fail", 500, "Raised");
    try first.expect_end();
    for ([_][]const u8{ "/broken", "/short/5", "/short/100000" }) |path| {
        var client = try fixture.connect();
        defer client.close();
        try client.get(path);
        try testing.expectError(error.Ended, client.response());
    }
    try fixture.finish();
}

test "server: a response longer than its Content-Length is cut there" {
    const fixture = try serve_narrow(calm);
    defer fixture.deinit();
    for ([_]usize{ 5, 10_000, 1_000_000 }) |length| {
        var client = try fixture.connect_with(narrow);
        defer client.close();
        var path: [32]u8 = undefined;
        try client.get(try std.fmt.bufPrint(&path, "/long/{d}", .{length}));
        sys.sleep_ms(30);
        try client.expect_pattern(length);
        try client.expect_end();
    }
    try fixture.finish();
}

// ---- Clients that leave ------------------------------------------------------------------------

test "server: a client that closes its sending side is answered" {
    const fixture = try serve_narrow(with(.{ .threads = 1 }));
    defer fixture.deinit();
    const paths = [_][]const u8{ "/large/5", "/sleep/20", "/large/900000", "/stream/9/100000" };
    for (paths) |path| {
        for ([_]u32{ 0, 5 }) |wait_ms| {
            var client = try fixture.connect();
            defer client.close();
            try client.get(path);
            sys.sleep_ms(wait_ms);
            client.half_close();
            try client.expect_status(200);
            try client.expect_end();
        }
    }
    // In the queue behind another one.
    var busy = try fixture.connect();
    defer busy.close();
    try busy.get("/gate");
    try fixture.expect_app("at_gate", 1);
    var queued = try fixture.connect();
    defer queued.close();
    const began_ms = sys.monotonic_ms();
    try queued.get("/small");
    try fixture.expect_count(.queued, 1);
    queued.half_close();
    sys.sleep_ms(10);
    fixture.app.gate.set();
    // On a busy machine it may wait so long that it is taken for one that has gone.
    queued.expect(200, "hello") catch |err| {
        if (sys.monotonic_ms() - began_ms < 250) return err;
    };
    try queued.expect_end();
    try fixture.expect_count(.connections, 1);
    busy.close();
    try fixture.finish();
}

test "server: half a head, half a body, then nothing: closed without an answer" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    const parts = [_][]const u8{
        "",
        "GET / HT",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    };
    for (parts) |part| {
        for (0..3) |how| {
            var client = try fixture.connect();
            defer client.close();
            try client.send(part);
            if (how > 0) sys.sleep_ms(5);
            if (how == 2) client.reset() else client.half_close();
            if (how != 2) try client.expect_end();
        }
    }
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a handler learns that its client has left" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    for (1..4) |round| {
        var client = try fixture.connect();
        defer client.close();
        try client.get("/gone");
        try fixture.expect_app("at_gate", @intCast(round));
        switch (round) {
            1 => client.close(),
            2 => client.reset(),
            else => client.half_close(),
        }
        try fixture.expect_app("gone", @intCast(round));
    }
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

test "server: clients that leave while their handler runs or while they are queued" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .threads = 1 }) });
    defer fixture.deinit();
    var clients: [12]Client = undefined;
    for (&clients, 0..) |*client, index| {
        client.* = try fixture.connect();
        try client.get(if (index == 0) "/gate" else "/large/300000");
        if (index == 0) try fixture.expect_app("at_gate", 1);
    }
    try fixture.expect_count(.queued, clients.len - 1);
    for (&clients, 0..) |*client, index| {
        if (index % 2 == 0) client.close() else client.reset();
    }
    sys.sleep_ms(10);
    fixture.app.gate.set();
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a queued request whose client has gone is not begun" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .threads = 1 }) });
    defer fixture.deinit();
    var busy = try fixture.connect();
    defer busy.close();
    try busy.get("/gate");
    try fixture.expect_app("at_gate", 1);
    var clients: [4]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.get("/small");
    }
    try fixture.expect_count(.queued, clients.len);
    // A reset cannot be taken for a client that has closed its sending side and still listens.
    for (&clients) |*client| client.reset();
    // Answered by the poller, which has seen them go by then.
    var other = try fixture.connect();
    defer other.close();
    try other.send("nonsense\r\n\r\n");
    try other.expect_status(400);
    try other.expect_end();
    other.close();
    fixture.app.gate.set();
    try busy.expect(200, "passed");
    try fixture.expect_count(.connections, 1);
    try testing.expectEqual(1, fixture.app.calls.load(.monotonic));
    busy.close();
    try fixture.finish();
}

test "server: clients that leave while their response is pending" {
    const fixture = try serve_narrow(calm);
    defer fixture.deinit();
    const paths = [_][]const u8{
        "/large/4000000", "/stream/400/10000", "/stream/40/100000", "/own/40/100000",
        "/own/400/10000",
    };
    var parks: u32 = 0;
    for (paths) |path| {
        for ([_]bool{ false, true }) |resets| {
            var client = try fixture.connect_with(narrow);
            defer client.close();
            try client.get(path);
            parks += 1;
            try fixture.expect_app("parks", parks);
            sys.sleep_ms(2);
            if (resets) client.reset() else client.close();
            try fixture.expect_count(.connections, 0);
            parks = fixture.app.parks.load(.acquire);
        }
    }
    try testing.expect(fixture.app.abandoned.load(.acquire) > 0);
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: a client that leaves a handler which waits to write" {
    const fixture = try serve_narrow(with(.{ .response_memory_bytes = 10_000 }));
    defer fixture.deinit();
    for ([_]bool{ false, true }) |resets| {
        var client = try fixture.connect_with(narrow);
        defer client.close();
        try client.get("/write/100/50000");
        try fixture.expect_count(.running, 1);
        sys.sleep_ms(20);
        try testing.expectEqual(1, fixture.server.counts().running);
        if (resets) client.reset() else client.close();
        try fixture.expect_count(.connections, 0);
    }
    try fixture.finish();
}

// ---- Clients that are slow ---------------------------------------------------------------------

test "server: a response larger than the socket's buffers comes whole" {
    const fixture = try serve_narrow(with(.{ .response_memory_bytes = 50_000 }));
    defer fixture.deinit();
    var client = try fixture.connect_with(narrow);
    defer client.close();
    const paths = [_]struct { []const u8, usize }{
        .{ "/large/3000000", 3_000_000 },   .{ "/stream/30/100000", 3_000_000 },
        .{ "/stream/3000/100", 300_000 },   .{ "/own/30/100000", 3_000_000 },
        .{ "/own/40/15000", 600_000 },      .{ "/write/30/100000", 3_000_000 },
        .{ "/write/1000/1000", 1_000_000 }, .{ "/stream/40/16384", 655_360 },
    };
    for (paths) |path| {
        try client.get(path[0]);
        try client.get("/small");
        sys.sleep_ms(20);
        try client.expect_pattern(path[1]);
        try client.expect(200, "hello");
    }
    client.close();
    try fixture.finish();
    try fixture.expect_no_descriptors();
}

test "server: slow clients hold no thread" {
    const fixture = try serve_narrow(with(.{ .threads = 1, .response_memory_bytes = 50_000 }));
    defer fixture.deinit();
    var slow: [6]Client = undefined;
    for (&slow, 0..) |*client, index| {
        client.* = try fixture.connect_with(narrow);
        const paths = [_][]const u8{ "/large/900000", "/stream/9/100000", "/own/9/100000" };
        try client.get(paths[index % 3]);
    }
    defer for (&slow) |*client| client.close();
    try fixture.expect_app("parks", slow.len);
    var fast = try fixture.connect();
    defer fast.close();
    for (0..20) |_| try fast.ask("/small", 200, "hello");
    for (&slow) |*client| try client.expect_pattern(900_000);
    for (&slow) |*client| try client.ask("/small", 200, "hello");
    for (&slow) |*client| client.close();
    fast.close();
    try fixture.finish();
}

// ---- Threads -----------------------------------------------------------------------------------

test "server: a handler that blocks does not stop the others" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var blocked: [3]Client = undefined;
    for (&blocked, 1..) |*client, count| {
        client.* = try fixture.connect();
        try client.get("/gate");
        try fixture.expect_app("at_gate", @intCast(count));
    }
    defer for (&blocked) |*client| client.close();
    var fast = try fixture.connect();
    defer fast.close();
    for (0..100) |_| try fast.ask("/small", 200, "hello");
    fixture.app.gate.set();
    for (&blocked) |*client| try client.expect(200, "passed");
    for (&blocked) |*client| client.close();
    fast.close();
    try fixture.finish();
}

fn ask_often(fixture: *Fixture, path: []const u8, body: []const u8, count: u32) void {
    var client = fixture.connect() catch return fail_thread(fixture);
    defer client.close();
    for (0..count) |_| client.ask(path, 200, body) catch return fail_thread(fixture);
}

fn fail_thread(fixture: *Fixture) void {
    _ = fixture.app.faults.fetchAdd(1, .monotonic);
}

test "server: the baton moves between handlers that spin, sleep and are fast" {
    const fixture = try Fixture.serve(.{ .options = calm });
    defer fixture.deinit();
    var threads: [6]std.Thread = undefined;
    for (&threads, 0..) |*thread, index| {
        thread.* = try switch (index) {
            0, 1 => std.Thread.spawn(.{}, ask_often, .{ fixture, "/spin/3", "spun", 30 }),
            2, 3 => std.Thread.spawn(.{}, ask_often, .{ fixture, "/sleep/2", "slept", 40 }),
            else => std.Thread.spawn(.{}, ask_often, .{ fixture, "/small", "hello", 300 }),
        };
    }
    for (threads) |thread| thread.join();
    // One is counted when its handler has returned, which is after its client has the answer.
    try fixture.expect_count(.requests, 30 * 2 + 40 * 2 + 300 * 2);
    try fixture.finish();
}

test "server: with all threads busy requests queue up, and past the queue they are refused" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .threads = 2, .queue = 1 }) });
    defer fixture.deinit();
    var clients: [3]Client = undefined;
    for (&clients, 1..) |*client, count| {
        client.* = try fixture.connect();
        try client.get("/gate");
        try fixture.expect_app("at_gate", @intCast(@min(count, 2)));
    }
    defer for (&clients) |*client| client.close();
    try fixture.expect_count(.queued, 1);
    var late = try fixture.connect();
    defer late.close();
    try late.get("/small");
    const answer = try late.response();
    defer answer.deinit();
    try testing.expectEqual(503, answer.status);
    try testing.expectEqualStrings("1", answer.field("Retry-After").?);
    try late.expect_end();
    var head = try fixture.connect();
    defer head.close();
    try head.send("HEAD /small HTTP/1.1\r\nHost: a\r\n\r\n");
    const no_body = try head.response_to("HEAD");
    defer no_body.deinit();
    try testing.expectEqual(503, no_body.status);
    try head.expect_end();
    fixture.app.gate.set();
    for (&clients) |*client| try client.expect(200, "passed");
    for (&clients) |*client| client.close();
    late.close();
    head.close();
    try fixture.finish();
}

test "server: who waits too long in the queue is refused while all threads are busy" {
    const fixture = try Fixture.serve(.{ .options = with(.{
        .threads = 2,
        .queue_timeout_ms = 500,
    }) });
    defer fixture.deinit();
    var busy: [2]Client = undefined;
    for (&busy, 1..) |*client, count| {
        client.* = try fixture.connect();
        try client.get("/gate");
        try fixture.expect_app("at_gate", @intCast(count));
    }
    defer for (&busy) |*client| client.close();
    var late: [5]Client = undefined;
    for (&late) |*client| {
        client.* = try fixture.connect();
        try client.get("/small");
    }
    defer for (&late) |*client| client.close();
    for (&late) |*client| {
        try client.expect_status(503);
        try client.expect_end();
    }
    try testing.expectEqual(5, fixture.server.counts().shed);
    fixture.app.gate.set();
    for (&busy) |*client| try client.expect(200, "passed");
    for (&busy) |*client| client.close();
    for (&late) |*client| client.close();
    try fixture.finish();
}

test "server: who waits too long while the GIL is held is refused meanwhile" {
    const fixture = try Fixture.serve(.{ .options = with(.{
        .threads = 2,
        .queue_timeout_ms = 500,
    }) });
    defer fixture.deinit();
    var busy = try fixture.connect();
    defer busy.close();
    for (1..4) |round| {
        fixture.app.gate.reset();
        try busy.get("/hold");
        try fixture.expect_app("at_gate", @intCast(round));
        var late = try fixture.connect();
        defer late.close();
        try late.send("HEAD /small HTTP/1.1\r\nHost: a\r\n\r\n");
        const answer = try late.response_to("HEAD");
        defer answer.deinit();
        try testing.expectEqual(503, answer.status);
        try late.expect_end();
        fixture.app.gate.set();
        try busy.expect(200, "held");
    }
    busy.close();
    try fixture.finish();
}

// ---- The limit on connections ------------------------------------------------------------------

test "server: past the limit the connection that is idle longest goes" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .connections = 3 }) });
    defer fixture.deinit();
    var clients: [3]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.ask("/small", 200, "hello");
        sys.sleep_ms(10);
    }
    defer for (&clients) |*client| client.close();
    try clients[0].ask("/small", 200, "hello");
    sys.sleep_ms(10);
    var fourth = try fixture.connect();
    defer fourth.close();
    try fourth.ask("/small", 200, "hello");
    try clients[1].expect_end();
    try clients[0].ask("/small", 200, "hello");
    try clients[2].ask("/small", 200, "hello");
    try testing.expectEqual(3, fixture.server.counts().connections);
    for (&clients) |*client| client.close();
    fourth.close();
    try fixture.finish();
}

test "server: with no idle connection accepting pauses until one is idle or gone" {
    for ([_]bool{ false, true }) |closes| {
        const fixture = try Fixture.serve(.{ .options = with(.{ .connections = 2 }) });
        defer fixture.deinit();
        var gated = try fixture.connect();
        defer gated.close();
        try gated.get("/gate");
        try fixture.expect_app("at_gate", 1);
        var sleeper = try fixture.connect();
        defer sleeper.close();
        try sleeper.send(if (closes)
            "GET /sleep/1500 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        else
            "GET /sleep/1500 HTTP/1.1\r\nHost: a\r\n\r\n");
        try fixture.expect_count(.running, 2);
        var third = try fixture.connect();
        defer third.close();
        try third.get("/small");
        try third.expect_silence(30);
        try sleeper.expect(200, "slept");
        try third.expect(200, "hello");
        try sleeper.expect_end();
        fixture.app.gate.set();
        try gated.expect(200, "passed");
        gated.close();
        sleeper.close();
        third.close();
        try fixture.finish();
    }
}

test "server: a flood of new clients past the limit is answered, each of them" {
    const fixture = try Fixture.start(.{ .options = with(.{ .connections = 4 }) });
    defer fixture.deinit();
    var clients: [40]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.get("/small");
    }
    defer for (&clients) |*client| client.close();
    try fixture.run();
    for (&clients) |*client| try client.expect(200, "hello");
    for (&clients) |*client| client.close();
    try fixture.finish();
}

test "server: without descriptors accepting pauses and goes on" {
    const fixture = try Fixture.start(.{ .options = calm });
    defer fixture.deinit();
    var clients: [3]Client = undefined;
    for (&clients) |*client| {
        client.* = try fixture.connect();
        try client.get("/small");
    }
    defer for (&clients) |*client| client.close();
    const limits = try std.posix.getrlimit(.NOFILE);
    var lower = limits;
    // The descriptors are dense, and the clients' are the last.
    lower.cur = @intCast(clients[2].fd + 2);
    try std.posix.setrlimit(.NOFILE, lower);
    errdefer std.posix.setrlimit(.NOFILE, limits) catch {};
    try fixture.run();
    try clients[0].expect(200, "hello");
    try clients[1].expect_silence(50);
    try std.posix.setrlimit(.NOFILE, limits);
    try clients[1].expect(200, "hello");
    try clients[2].expect(200, "hello");
    for (&clients) |*client| client.close();
    try fixture.finish();
}

// ---- Timeouts ----------------------------------------------------------------------------------

test "server: a head that does not end in time is answered with 408" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .head_timeout_ms = 60 }) });
    defer fixture.deinit();
    for ([_][]const u8{ "", "GET /small HTTP/1.1\r\nHost: a\r\n\r\n" }) |before| {
        var client = try fixture.connect();
        defer client.close();
        try client.send(before);
        if (before.len > 0) try client.expect(200, "hello");
        try client.send("GET / HTTP/1.1\r\n");
        // Bytes alone do not prolong it.
        for (0..3) |_| {
            sys.sleep_ms(15);
            try client.send("A: b\r\n");
        }
        try client.expect_status(408);
        try client.expect_end();
    }
    try fixture.finish();
}

test "server: a body without progress is answered with 408, one with progress is taken" {
    try expect_body_timeout();
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_timeout_ms = 2000 }) });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for ("abcdefghij") |byte| {
        sys.sleep_ms(250);
        try client.send(&.{byte});
    }
    try client.expect(200, "abcdefghij");
    client.close();
    try fixture.finish();
}

fn expect_body_timeout() !void {
    const fixture = try Fixture.serve(.{ .options = with(.{ .body_timeout_ms = 250 }) });
    defer fixture.deinit();
    const framings = [_][]const u8{ "Content-Length: 6", "Content-Length: 70000", "" };
    for (framings) |framing| {
        var client = try fixture.connect();
        defer client.close();
        try client.send("POST /echo HTTP/1.1\r\nHost: a\r\n");
        try client.send(if (framing.len == 0) "Transfer-Encoding: chunked" else framing);
        try client.send("\r\n\r\n5\r\na");
        try client.expect_status(408);
        try client.expect_end();
    }
    try fixture.finish();
}

test "server: an idle connection is closed in time, and not before" {
    const fixture = try Fixture.serve(.{ .options = with(.{ .keep_alive_timeout_ms = 2000 }) });
    defer fixture.deinit();
    var silent = try fixture.connect();
    defer silent.close();
    try silent.expect_end();
    var client = try fixture.connect();
    defer client.close();
    for (0..5) |_| {
        try client.ask("/small", 200, "hello");
        sys.sleep_ms(450);
    }
    // A handler may take longer than a connection may be idle.
    try client.ask("/sleep/2300", 200, "slept");
    try client.ask("/small", 200, "hello");
    try client.expect_end();
    silent.close();
    client.close();
    try fixture.finish();
}

test "server: a client that takes nothing is given up" {
    const fixture = try serve_narrow(with(.{
        .write_timeout_ms = 300,
        .response_memory_bytes = 50_000,
    }));
    defer fixture.deinit();
    const paths = [_][]const u8{
        "/large/4000000",   "/stream/40/100000", "/stream/400/10000", "/own/40/100000",
        "/write/40/100000",
    };
    for (paths) |path| {
        var client = try fixture.connect_with(narrow);
        defer client.close();
        try client.get(path);
        try fixture.expect_count(.connections, 1);
        try fixture.expect_count(.connections, 0);
        try testing.expect(std.meta.isError(client.response()));
    }
    try fixture.finish();
}

test "server: a client that takes a little now and then is not given up" {
    const fixture = try serve_narrow(with(.{
        .write_timeout_ms = 2000,
        .response_memory_bytes = 50_000,
    }));
    defer fixture.deinit();
    var slow = try fixture.connect_with(narrow);
    defer slow.close();
    try slow.get("/large/1000000");
    for (0..10) |_| {
        sys.sleep_ms(250);
        var buffer: [40_000]u8 = undefined;
        const count = try sys.recv(slow.fd, &buffer);
        try slow.received.appendSlice(gpa, buffer[0..count]);
    }
    try slow.expect_pattern(1_000_000);
    slow.close();
    try fixture.finish();
}

test "server: time in which nobody could poll is not the client's" {
    const fixture = try Fixture.serve(.{ .options = with(.{
        .threads = 2,
        .head_timeout_ms = 2000,
    }) });
    defer fixture.deinit();
    var first = try fixture.connect();
    defer first.close();
    var second = try fixture.connect();
    defer second.close();
    try first.send("GET /spin/3000 HTTP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\n");
    try fixture.expect_count(.running, 1);
    // The one that polls waits for the GIL now.
    try second.get("/small");
    try first.expect(200, "spun");
    sys.sleep_ms(20);
    try first.send("Host: a\r\n\r\n");
    try first.expect(200, "hello");
    try second.expect(200, "hello");
    first.close();
    second.close();
    try fixture.finish();
}

test "server: bytes behind the last request do not reset the connection" {
    const fixture = try serve_narrow(calm);
    defer fixture.deinit();
    for ([_][]const u8{ "/gate", "/large/900000" }) |path| {
        fixture.app.gate.reset();
        const at_gate = fixture.app.at_gate.load(.acquire);
        var client = try fixture.connect_with(narrow);
        defer client.close();
        var text: [100]u8 = undefined;
        const head = "GET {s} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        try client.send(try std.fmt.bufPrint(&text, head, .{path}));
        const is_gate = std.mem.eql(u8, path, "/gate");
        if (is_gate) try fixture.expect_app("at_gate", at_gate + 1) else sys.sleep_ms(20);
        try client.get("/small");
        if (is_gate) try fixture.expect_readable_seen() else sys.sleep_ms(20);
        fixture.app.gate.set();
        try client.expect_status(200);
        try client.expect_end();
    }
    try fixture.finish();
}

test "server: workers need no GIL to begin" {
    const fixture = try Fixture.start(.{ .options = calm });
    defer fixture.deinit();
    try fixture.begin();
    {
        // As the first request may, from its beginning on.
        fixture_module.enter(null);
        defer _ = fixture_module.leave();
        fixture.server.attended.set();
        var client = try fixture.connect();
        defer client.close();
        try client.send("GET / HTTP/1.1\r\n\r\n");
        try client.expect_status(400);
    }
    try fixture.finish();
}
