//! static.zig against a real directory: what is found, what is refused, and what the head says.
//! Each request is asked with openat2 and with the steps that stand in for it. Thread: the test's.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const static = @import("static.zig");
const request_head = @import("request_head.zig");
const StaticFiles = static.StaticFiles;

const gpa = testing.allocator;
const modified = 1_700_000_000;
const modified_text = "Tue, 14 Nov 2023 22:13:20 GMT";
const now = modified + 5000;

const Fixture = struct {
    folder: testing.TmpDir,
    path: [:0]const u8,
    files: *StaticFiles,
    storage: [32]request_head.FieldLine = undefined,
    buffer: [static.buffer_bytes_min]u8 = undefined,
    answer: ?static.Answer = null,

    fn begin(self: *Fixture, index: []const u8, fallthrough: bool) !void {
        self.* = .{ .folder = testing.tmpDir(.{}), .path = undefined, .files = undefined };
        try self.folder.dir.makeDir("www");
        var storage: [std.fs.max_path_bytes]u8 = undefined;
        self.path = try gpa.dupeZ(u8, try self.folder.dir.realpath("www", &storage));
        self.files = try StaticFiles.create(gpa, &.{
            .{
                .route = "/s/",
                .directory = self.path,
                .cache_control = "max-age=60",
                .index = index,
                .fallthrough = fallthrough,
            },
            .{
                .route = "/s/deeper",
                .directory = self.path,
                .cache_control = "",
                .index = "",
                .fallthrough = false,
            },
        });
    }

    fn deinit(self: *Fixture) void {
        self.drop_answer();
        self.files.destroy();
        gpa.free(self.path);
        self.folder.cleanup();
    }

    fn drop_answer(self: *Fixture) void {
        if (self.answer) |answer| {
            if (answer.file != sys.no_fd) sys.close(answer.file);
            if (answer.multipart) |multipart| multipart.destroy();
        }
        self.answer = null;
    }

    fn write(self: *Fixture, name: []const u8, text: []const u8) !void {
        var www = try self.folder.dir.openDir("www", .{});
        defer www.close();
        if (std.fs.path.dirname(name)) |parent| try www.makePath(parent);
        var file = try www.createFile(name, .{});
        defer file.close();
        try file.writeAll(text);
        const time = modified * @as(i128, std.time.ns_per_s) + 5;
        try file.updateTimes(time, time);
    }

    /// The head of the answer, or null for the application. `lines` are whole field lines.
    fn ask(self: *Fixture, method: []const u8, path: []const u8, lines: []const u8) !?[]const u8 {
        self.drop_answer();
        var text: [8192]u8 = undefined;
        const bytes = try std.fmt.bufPrint(
            &text,
            "{s} {s} HTTP/1.1\r\nHost: a\r\n{s}\r\n",
            .{ method, path, lines },
        );
        var head: request_head.RequestHead = .init(&self.storage);
        try testing.expect(try head.parse(bytes, .{
            .request_line_bytes_max = 8000,
            .head_bytes_max = 8192,
            .field_lines_max = 32,
        }));
        if (!self.files.is_routed(&head, bytes)) return null;
        self.answer = self.files.answer(&.{
            .head = &head,
            .bytes = bytes,
            .persistence = .implied,
            .now_ms = sys.monotonic_ms(),
            .now = now,
            .date = &date_module.format(now),
        }, &self.buffer);
        const answer = self.answer orelse return null;
        return answer.bytes;
    }

    fn expect_status(self: *Fixture, path: []const u8, status: u16) !void {
        return self.expect("GET", path, "", status, &.{});
    }

    /// Each of `parts` is in the answer's bytes.
    fn expect(
        self: *Fixture,
        method: []const u8,
        path: []const u8,
        lines: []const u8,
        status: u16,
        parts: []const []const u8,
    ) !void {
        for ([_]bool{ true, false }) |has_openat2| {
            self.files.has_openat2 = has_openat2 and sys.is_linux;
            errdefer std.debug.print("{s} {s} {s}\n", .{ method, path, lines });
            const bytes = try self.ask(method, path, lines) orelse return error.NoAnswer;
            errdefer std.debug.print("{s}\n", .{bytes});
            try testing.expectEqual(status, self.answer.?.status);
            for (parts) |part| {
                errdefer std.debug.print("missing: {s}\n", .{part});
                try testing.expect(std.mem.indexOf(u8, bytes, part) != null);
            }
        }
    }

    fn expect_application(self: *Fixture, path: []const u8) !void {
        for ([_]bool{ true, false }) |has_openat2| {
            self.files.has_openat2 = has_openat2 and sys.is_linux;
            errdefer std.debug.print("{s}\n", .{path});
            try testing.expectEqual(null, try self.ask("GET", path, ""));
        }
    }
};

test "static: the whole head of a file" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.css", "body {}");
    const bytes = (try fixture.ask("GET", "/s/a.css", "")).?;
    try testing.expectEqualStrings("HTTP/1.1 200 OK\r\nDate: Tue, 14 Nov 2023 23:36:40 GMT\r\n" ++
        "Server: serve-zig\r\nContent-Type: text/css; charset=utf-8\r\nContent-Length: 7\r\n" ++
        "Last-Modified: " ++ modified_text ++ "\r\nETag: \"17979cfe362a0005-7\"\r\n" ++
        "Vary: Accept-Encoding\r\nCache-Control: max-age=60\r\nAccept-Ranges: bytes\r\n\r\n" ++
        "body {}", bytes);
    const head = (try fixture.ask("HEAD", "/s/a.css", "")).?;
    try testing.expect(std.mem.endsWith(u8, head, "Accept-Ranges: bytes\r\n\r\n"));
    try testing.expect(std.mem.indexOf(u8, head, "Content-Length: 7\r\n") != null);
}

test "static: a large file is handed on, open" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.png", "x" ** 100_000);
    try fixture.expect("GET", "/s/a.png", "", 200, &.{ "image/png\r\n", ": 100000\r\n" });
    const answer = fixture.answer.?;
    try testing.expectEqual(100_000, answer.range.length);
    try testing.expectEqual(.regular, (try sys.file_info(answer.file)).kind);
    // What is compressed itself has no other form.
    try testing.expect(std.mem.indexOf(u8, answer.bytes, "Vary") == null);
    try fixture.expect("GET", "/s/a.png", "Range: bytes=5-80004\r\n", 206, &.{
        "Content-Range: bytes 5-80004/100000\r\n", "Content-Length: 80000\r\n",
    });
    try testing.expectEqual(5, fixture.answer.?.range.start);
    try fixture.expect("HEAD", "/s/a.png", "Range: bytes=5-80004\r\n", 200, &.{": 100000\r\n"});
    try testing.expectEqual(sys.no_fd, fixture.answer.?.file);
}

test "static: the longest route counts, and a route ends at a slash" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.txt", "a");
    try fixture.write("deeper/a.txt", "below");
    try fixture.expect("GET", "/s/a.txt", "", 200, &.{"max-age=60"});
    try fixture.expect("GET", "/s/deeper/a.txt", "", 200, &.{"Length: 1\r\n"});
    try testing.expect(std.mem.indexOf(u8, fixture.answer.?.bytes, "max-age") == null);
    for ([_][]const u8{ "/", "/sa", "/s.txt", "/S/a.txt", "/a/s/a.txt", "//s/a.txt" }) |path| {
        try fixture.expect_application(path);
    }
    try fixture.expect("GET", "http://b/s/a.txt", "", 200, &.{});
    try testing.expectEqual(null, try fixture.ask("OPTIONS", "*", ""));
}

test "static: what is not there, or not to be seen" {
    var fixture: Fixture = undefined;
    try fixture.begin("index.html", false);
    defer fixture.deinit();
    try fixture.write("a/b.txt", "b");
    try fixture.write(".hidden", "h");
    try fixture.write("a/.git/config", "c");
    try fixture.folder.dir.writeFile(.{ .sub_path = "secret", .data = "s" });
    const long = "/s/" ++ "a" ** 5000;
    for ([_][]const u8{
        "/s/none",          "/s/a/none",         "/s/a",              "/s/a/",
        "/s",               "/s/",               "/s/a/b.txt/",       "/s/a/b.txt/c",
        "/s/.hidden",       "/s/%2ehidden",      "/s/a/.git/config",  "/s/../secret",
        "/s/%2e%2e/secret", "/s/..%2fsecret",    "/s/a/../../secret", "/s/a%2fb.txt",
        "/s//a/b.txt",      "/s/a//b.txt",       "/s/a/./b.txt",      "/s/a/b.txt%00",
        "/s/a%5cb.txt",     "/s/%2fetc/passwd",  "/s//etc/passwd",    "/s/a%00/b.txt",
        long,               "/s/" ++ "a" ** 300, "/s/a/b.txt%20",     "/s/A/b.txt",
        "/s/%61%2Fb.txt",
    }) |path| try fixture.expect_status(path, 404);
    try fixture.expect_status("/s/a/b.txt", 200);
    try fixture.expect_status("/s/%61/%62.txt", 200);
}

test "static: links lead nowhere but below the directory, and a step at a time not at all" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a/b.txt", "b");
    try fixture.folder.dir.writeFile(.{ .sub_path = "secret", .data = "s" });
    var www = try fixture.folder.dir.openDir("www", .{});
    defer www.close();
    try www.symLink("../secret", "out.txt", .{});
    try www.symLink("..", "up", .{});
    try www.symLink("/etc/passwd", "absolute.txt", .{});
    try www.symLink("/etc", "etc", .{});
    try www.symLink("loop.txt", "loop.txt", .{});
    try www.symLink("a/b.txt", "in.txt", .{});
    try www.symLink("a", "c", .{});
    try www.symLink("/proc/self/root/etc/passwd", "magic.txt", .{});
    for ([_][]const u8{
        "/s/out.txt",    "/s/up/secret", "/s/up/www/a/b.txt", "/s/absolute.txt",
        "/s/etc/passwd", "/s/loop.txt",  "/s/magic.txt",
    }) |path| try fixture.expect_status(path, 404);
    for ([_][]const u8{ "/s/in.txt", "/s/c/b.txt" }) |path| {
        fixture.files.has_openat2 = false;
        _ = try fixture.ask("GET", path, "");
        try testing.expectEqual(404, fixture.answer.?.status);
        if (!sys.is_linux) continue;
        fixture.files.has_openat2 = true;
        _ = try fixture.ask("GET", path, "");
        try testing.expectEqual(200, fixture.answer.?.status);
    }
}

test "static: what is no regular file makes nobody wait" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    for ([_][]const u8{ "fifo.txt", "page.txt.gz" }) |name| {
        var path: [std.fs.max_path_bytes]u8 = undefined;
        const whole = try std.fmt.bufPrintZ(&path, "{s}/{s}", .{ fixture.path, name });
        try testing.expectEqual(0, mkfifo(whole, 0o600));
    }
    try fixture.write("page.txt", "plain");
    try fixture.expect_status("/s/fifo.txt", 404);
    try fixture.expect("GET", "/s/page.txt", "Accept-Encoding: gzip\r\n", 200, &.{"plain"});
}

extern "c" fn mkfifo(path: [*:0]const u8, mode: std.c.mode_t) c_int;

test "static: a directory with an index" {
    var fixture: Fixture = undefined;
    try fixture.begin("index.html", false);
    defer fixture.deinit();
    try fixture.write("index.html", "top");
    try fixture.write("a/index.html", "inner");
    try fixture.write("b/c.txt", "c");
    try fixture.write("d/index.html/e", "odd");
    try fixture.expect("GET", "/s/", "", 200, &.{ "text/html", "top" });
    try fixture.expect("GET", "/s/a/", "", 200, &.{"inner"});
    try fixture.expect("GET", "/s/a", "", 301, &.{"\r\nLocation: ./a/\r\n"});
    try fixture.expect("HEAD", "/s/a?b=/c", "", 301, &.{"\r\nLocation: ./a/?b=/c\r\n"});
    try fixture.expect("GET", "/s", "", 301, &.{"\r\nLocation: ./s/\r\n"});
    try fixture.expect("GET", "/s/%61?", "", 301, &.{"\r\nLocation: ./%61/?\r\n"});
    for ([_][]const u8{ "/s/b", "/s/b/", "/s/d", "/s/d/", "/s/index.html/" }) |path| {
        try fixture.expect_status(path, 404);
    }
}

test "static: methods, and the application where there is no file" {
    var strict: Fixture = undefined;
    try strict.begin("", false);
    defer strict.deinit();
    try strict.write("a.txt", "a");
    for ([_][]const u8{ "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get" }) |method| {
        try strict.expect(method, "/s/a.txt", "", 405, &.{"\r\nAllow: GET, HEAD\r\n"});
        try strict.expect(method, "/s/none", "", 405, &.{});
    }
    var open: Fixture = undefined;
    try open.begin("", true);
    defer open.deinit();
    try open.write("a.txt", "a");
    try testing.expectEqual(null, try open.ask("POST", "/s/a.txt", ""));
    try open.expect_application("/s/none");
    try open.expect_application("/s/.hidden");
    try open.expect_application("/s/%2e%2e/a");
    try open.expect_status("/s/a.txt", 200);
}

test "static: compressed siblings" {
    var fixture: Fixture = undefined;
    try fixture.begin("index.html", false);
    defer fixture.deinit();
    try fixture.write("a.js", "plain");
    try fixture.write("a.js.gz", "gzipped");
    try fixture.write("a.js.zst", "zstandard");
    try fixture.write("a.js.br", "brotli");
    try fixture.write("index.html", "page");
    try fixture.write("index.html.gz", "packed");
    try fixture.write("a.png", "image");
    try fixture.write("a.png.gz", "silly");
    const javascript = "Content-Type: text/javascript; charset=utf-8\r\n";
    const vary = "\r\nVary: Accept-Encoding\r\n";
    const cases = [_]struct { []const u8, []const u8, []const u8 }{
        .{ "gzip", "\r\nContent-Encoding: gzip\r\n", "gzipped" },
        .{ "gzip, br", "\r\nContent-Encoding: br\r\n", "brotli" },
        .{ "zstd;q=1, br;q=0.9", "\r\nContent-Encoding: zstd\r\n", "zstandard" },
        .{ "deflate", vary, "plain" },
        .{ "identity, gzip;q=0.1", vary, "plain" },
    };
    for (cases) |case| {
        var line: [100]u8 = undefined;
        const lines = try std.fmt.bufPrint(&line, "Accept-Encoding: {s}\r\n", .{case[0]});
        try fixture.expect("GET", "/s/a.js", lines, 200, &.{ javascript, vary, case[1], case[2] });
    }
    const gzip = "Accept-Encoding: gzip\r\n";
    try fixture.expect("GET", "/s/", gzip, 200, &.{ "text/html", "coding: gzip\r\n", "packed" });
    try fixture.expect("GET", "/s/a.png", gzip, 200, &.{"image"});
    try fixture.expect("GET", "/s/a.js.gz", gzip, 200, &.{ "application/gzip\r\n", "gzipped" });
    try testing.expect(std.mem.indexOf(u8, fixture.answer.?.bytes, "Content-Encoding") == null);
    // Ranges and tags are those of the form that was chosen.
    try fixture.expect("GET", "/s/a.js", gzip ++ "Range: bytes=-3\r\n", 206, &.{
        "Content-Range: bytes 4-6/7\r\n", "Content-Encoding: gzip\r\n", "\r\n\r\nped",
    });
    try fixture.expect("GET", "/s/a.js", "", 200, &.{"ETag: \"17979cfe362a0005-5\"\r\n"});
    try fixture.expect("GET", "/s/a.js", gzip, 200, &.{"ETag: \"17979cfe362a0005-7-gzip\"\r\n"});
    const plain_tag = "If-None-Match: \"17979cfe362a0005-5\"\r\n";
    try fixture.expect("GET", "/s/a.js", plain_tag, 304, &.{});
    try fixture.expect("GET", "/s/a.js", gzip ++ plain_tag, 200, &.{});
}

test "static: conditions" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.txt", "0123456789");
    const tag = "\"17979cfe362a0005-a\"";
    const same = "If-None-Match: " ++ tag ++ "\r\n";
    try fixture.expect("GET", "/s/a.txt", same, 304, &.{
        "ETag: " ++ tag, "max-age=60", "Vary: Accept-Encoding",
    });
    try testing.expect(std.mem.indexOf(u8, fixture.answer.?.bytes, "Content-") == null);
    const since = "If-Modified-Since: " ++ modified_text ++ "\r\n";
    try fixture.expect("GET", "/s/a.txt", since, 304, &.{});
    try fixture.expect("HEAD", "/s/a.txt", "If-Match: \"x\"\r\n", 412, &.{});
    try fixture.expect("GET", "/s/a.txt", "If-Match: \"x\"\r\n", 412, &.{"Precondition Failed\n"});
    const range = "Range: bytes=2-3\r\n";
    try fixture.expect("GET", "/s/a.txt", range ++ "If-Range: " ++ tag ++ "\r\n", 206, &.{"\n23"});
    try fixture.expect("GET", "/s/a.txt", range ++ "If-Range: \"x\"\r\n", 200, &.{"\n0123456789"});
    try fixture.expect("GET", "/s/a.txt", range ++ same, 304, &.{});
    try fixture.expect("GET", "/s/a.txt", range ++ range, 200, &.{});
    try fixture.expect("GET", "/s/a.txt", "Range: bytes=10-\r\n", 416, &.{"bytes */10\r\n"});
    try fixture.expect("GET", "/s/a.txt", "Range: bytes=0-1,8-\r\n", 206, &.{
        "Content-Type: multipart/byteranges; boundary=", "Accept-Ranges",
    });
    try testing.expect(fixture.answer.?.multipart != null);
}

test "static: times that are none, or are to come" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.txt", "a");
    var file = try fixture.folder.dir.openFile("www/a.txt", .{ .mode = .read_write });
    defer file.close();
    // As reproducible images and packages have it.
    for ([_]i128{ 0, 1, 315_532_800, 499_162_500 }) |seconds| {
        const time = seconds * std.time.ns_per_s;
        try file.updateTimes(time, time);
        try fixture.expect("GET", "/s/a.txt", "", 200, &.{});
        const bytes = fixture.answer.?.bytes;
        try testing.expect(std.mem.indexOf(u8, bytes, "Last-Modified") == null);
        // Not the same for every file of that time and size.
        try testing.expect(std.mem.indexOf(u8, bytes, "-1\"\r\n") != null);
        var tag: [64]u8 = undefined;
        const text = try std.fmt.bufPrint(&tag, "ETag: \"{x}-1\"", .{@as(u64, @intCast(time))});
        try testing.expect(std.mem.indexOf(u8, bytes, text) == null);
    }
    const time = (now + 1000) * @as(i128, std.time.ns_per_s);
    try file.updateTimes(time, time);
    try fixture.expect("GET", "/s/a.txt", "", 200, &.{
        "Last-Modified: Tue, 14 Nov 2023 23:36:40 GMT\r\n",
    });
}

test "static: an empty file" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.txt", "");
    try fixture.expect("GET", "/s/a.txt", "", 200, &.{"Content-Length: 0\r\n"});
    try fixture.expect("GET", "/s/a.txt", "Range: bytes=0-\r\n", 416, &.{"bytes */0\r\n"});
    try fixture.expect("GET", "/s/a.txt", "Range: bytes=-1\r\n", 200, &.{});
}

test "static: a directory that another one has replaced" {
    var fixture: Fixture = undefined;
    try fixture.begin("", false);
    defer fixture.deinit();
    try fixture.write("a.txt", "old");
    try fixture.expect("GET", "/s/a.txt", "", 200, &.{"old"});
    try fixture.folder.dir.rename("www", "gone");
    try fixture.folder.dir.makeDir("www");
    try fixture.write("a.txt", "new one");
    for (fixture.files.sites) |*site| site.checked_ms = 0;
    try fixture.expect("GET", "/s/a.txt", "", 200, &.{"new one"});
    // Without any it is as it was, and there is nothing in it.
    try fixture.folder.dir.deleteTree("www");
    for (fixture.files.sites) |*site| site.checked_ms = 0;
    try fixture.expect_status("/s/a.txt", 404);
}

test "static: a redirect keeps its query, as long as there is room for it" {
    var fixture: Fixture = undefined;
    try fixture.begin("index.html", false);
    defer fixture.deinit();
    try fixture.write("a/index.html", "a");
    const query = "q" ** 6000;
    try fixture.expect("GET", "/s/a?" ++ query, "", 301, &.{"Location: ./a/?" ++ query ++ "\r\n"});
    const bytes = "GET /s/a?" ++ "q" ** static.buffer_bytes_min ++ " HTTP/1.1\r\nHost: a\r\n\r\n";
    var head: request_head.RequestHead = .init(&fixture.storage);
    try testing.expect(try head.parse(bytes, .{
        .request_line_bytes_max = 100_000,
        .head_bytes_max = 100_000,
        .field_lines_max = 32,
    }));
    const answer = fixture.files.answer(&.{
        .head = &head,
        .bytes = bytes,
        .persistence = .implied,
        .now_ms = 0,
        .now = now,
        .date = &date_module.format(now),
    }, &fixture.buffer).?;
    try testing.expectEqual(404, answer.status);
}

test "static: no descriptor is left behind" {
    var fixture: Fixture = undefined;
    try fixture.begin("index.html", false);
    defer fixture.deinit();
    try fixture.write("a/b/c.txt", "0123456789");
    try fixture.write("a/index.html", "index");
    const before = try open_descriptors();
    const requests = [_]struct { []const u8, []const u8, []const u8 }{
        .{ "GET", "/s/a/b/c.txt", "" },
        .{ "HEAD", "/s/a/b/c.txt", "" },
        .{ "GET", "/s/a/b/c.txt", "If-None-Match: *\r\n" },
        .{ "GET", "/s/a/b/c.txt", "If-Match: \"x\"\r\n" },
        .{ "GET", "/s/a/b/c.txt", "Range: bytes=99-\r\n" },
        .{ "GET", "/s/a/b/c.txt", "Range: bytes=0-0,4-4\r\n" },
        .{ "GET", "/s/a", "" },
        .{ "GET", "/s/a/b", "" },
        .{ "GET", "/s/a/b/none.txt", "" },
        .{ "GET", "/s/a/b/c.txt/d", "" },
    };
    for (requests) |request| {
        for ([_]bool{ true, false }) |has_openat2| {
            fixture.files.has_openat2 = has_openat2 and sys.is_linux;
            _ = try fixture.ask(request[0], request[1], request[2]);
        }
    }
    fixture.drop_answer();
    try testing.expectEqual(before, try open_descriptors());
}

fn open_descriptors() !usize {
    var count: usize = 0;
    for (0..256) |fd| {
        const flags = std.c.fcntl(@intCast(fd), std.c.F.GETFD, @as(c_int, 0));
        if (flags >= 0) count += 1;
    }
    return count;
}
