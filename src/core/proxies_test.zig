//! The whole server behind proxies, without Python: PROXY headers as they come, connections that
//! end in one, forwarded fields that are refused. Ends as server_test.zig does: with a drain that
//! must give everything back.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const fixture_module = @import("server_fixture.zig");
const Fixture = fixture_module.Fixture;
const Options = @import("server.zig").Options;

const behind_protocol: Options = .{
    .threads = 2,
    .connections = 16,
    .drain_timeout_ms = fixture_module.patience_ms,
    .proxy_trusted = "127.0.0.1,unix",
    .proxy_protocol = true,
};

const header = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
const header_2 = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f" ++
    "\xc0\x00\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb" ++ "\x04\x00\x00";
const request = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n";

fn with_head_timeout(timeout_ms: u64) Options {
    var options = behind_protocol;
    options.head_timeout_ms = timeout_ms;
    return options;
}

/// Takes the notice that the server must have left, and the byte that tells of it.
fn expect_notice(fixture: *Fixture) !void {
    const pipe = fixture.server.outcome_pipe[0];
    try testing.expect(sys.wait_ready(pipe, .readable, fixture_module.patience_ms));
    var byte: [4]u8 = undefined;
    try testing.expectEqual(1, try sys.recv(pipe, &byte));
    try testing.expectEqual(.proxy_header_missing, fixture.server.notices.take().?.kind);
}

test "proxies: a connection begins with a header and goes on as any other" {
    for ([_][]const u8{ header, header_2 }) |bytes| {
        const fixture = try Fixture.serve(.{ .options = behind_protocol });
        defer fixture.deinit();
        var client = try fixture.connect();
        defer client.close();
        try client.send(bytes);
        // An idle connection holds no exchange, also this one.
        try client.ask("/small", 200, "hello");
        const address = &fixture.server.poller.slots.connections[0].address;
        var storage: [sys.address_text_bytes_max]u8 = undefined;
        try testing.expectEqualStrings("192.0.2.7", sys.address_text(address, &storage));
        try client.ask("/none", 204, "");
        try client.send(request ++ request);
        try client.expect(200, "hello");
        try client.expect(200, "hello");
        client.close();
        try fixture.finish();
        try fixture.expect_no_descriptors();
    }
}

test "proxies: a header may come in two parts, split anywhere" {
    for ([_]@FieldType(fixture_module.Setup, "family"){ .tcp, .unix }) |family| {
        const fixture = try Fixture.serve(.{ .options = behind_protocol, .family = family });
        defer fixture.deinit();
        const text = header_2 ++ request;
        for (1..text.len) |at| {
            var client = try fixture.connect();
            defer client.close();
            try client.send(text[0..at]);
            sys.sleep_ms(1);
            try client.send(text[at..]);
            try client.expect(200, "hello");
        }
        try fixture.finish();
    }
}

test "proxies: a connection without a header ends, and is told of once" {
    const fixture = try Fixture.serve(.{ .options = behind_protocol });
    defer fixture.deinit();
    for (0..3) |attempt| {
        var client = try fixture.connect();
        defer client.close();
        try client.send(request);
        const end = client.response();
        try testing.expect(end == error.Ended or end == error.Reset);
        if (attempt == 0) try expect_notice(fixture);
    }
    try testing.expect(fixture.server.notices.take() == null);
    try fixture.finish();
}

test "proxies: clients that leave before or in a header leave nothing behind" {
    const fixture = try Fixture.serve(.{ .options = behind_protocol });
    defer fixture.deinit();
    for (0..header.len) |length| {
        var client = try fixture.connect();
        try client.send(header[0..length]);
        if (length % 3 == 0) {
            client.reset();
        } else {
            if (length % 3 == 1) client.half_close();
            client.close();
        }
    }
    try fixture.expect_count(.connections, 0);
    try fixture.finish();
}

test "proxies: the time for a header runs from the beginning" {
    const fixture = try Fixture.serve(.{ .options = with_head_timeout(60) });
    defer fixture.deinit();
    var silent = try fixture.connect();
    defer silent.close();
    var half = try fixture.connect();
    defer half.close();
    try half.send(header[0..10]);
    try silent.expect_end();
    try half.expect_end();
    silent.close();
    half.close();
    try fixture.finish();
}

test "proxies: once the header is there the connection is as idle as any" {
    const fixture = try Fixture.serve(.{ .options = with_head_timeout(2000) });
    defer fixture.deinit();
    var client = try fixture.connect();
    defer client.close();
    try client.send(header);
    try client.expect_silence(2500);
    try client.ask("/small", 200, "hello");
    client.close();
    try fixture.finish();
}

test "proxies: a drain closes connections whose header has not come, and reads what has" {
    const fixture = try Fixture.serve(.{ .options = behind_protocol });
    defer fixture.deinit();
    var silent = try fixture.connect();
    defer silent.close();
    try fixture.expect_count(.connections, 1);
    try fixture.finish();
    try silent.expect_end();
}

test "proxies: a request for https is served to a trusted gateway alone" {
    const secured = "GET https://a/small HTTP/1.1\r\nHost: a\r\n";
    var options = behind_protocol;
    options.proxy_protocol = false;
    const believing = try Fixture.serve(.{ .options = options });
    defer believing.deinit();
    var gateway = try believing.connect();
    defer gateway.close();
    // Whatever it says of its client's connection, or if it says nothing.
    const said = "X-Forwarded-Proto: ";
    inline for (.{ "", said ++ "https\r\n", said ++ "http\r\n" }) |line| {
        try gateway.send(secured ++ line ++ "\r\n");
        try gateway.expect(200, "hello");
    }
    gateway.close();
    try believing.finish();

    // A balancer that passes bytes on is no gateway: what follows its header is the client's.
    const behind = try Fixture.serve(.{ .options = behind_protocol });
    defer behind.deinit();
    var client = try behind.connect();
    defer client.close();
    try client.send(header ++ secured ++ "\r\n");
    try client.expect(421, "421 Misdirected Request: misdirected\n");
    try client.expect_end();
    client.close();
    try behind.finish();
}

test "proxies: fields that would be believed and are invalid are refused" {
    var options = behind_protocol;
    options.proxy_protocol = false;
    const fixture = try Fixture.serve(.{ .options = options });
    defer fixture.deinit();
    const head = "GET /small HTTP/1.1\r\nHost: a\r\n";
    var client = try fixture.connect();
    defer client.close();
    try client.send(head ++ "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: b\r\n\r\n");
    try client.expect(200, "hello");
    try client.send(head ++ "X-Forwarded-For: x\r\n\r\n");
    try client.expect(400, "400 Bad Request: bad_forwarded_for\n");
    try client.expect_end();
    client.close();
    try fixture.finish();
}
