//! Files that are answered without the application: from a request's path to a response head and
//! an open file (RFC 9110 13, 14, 15).
//!
//! It decides and writes the head; poller.zig sends. Files are opened below their directory and
//! nowhere else, and each request sees the file system as it is then: nothing is cached but the
//! directory's descriptor. Owner: the poller, one request at a time. GIL: not needed. Opening and
//! reading wait for the disk where the kernel has not cached the file.

const std = @import("std");
const sys = @import("sys.zig");
const ranges = @import("ranges.zig");
const fields = @import("fields.zig");
const file_path = @import("file_path.zig");
const conditional = @import("conditional.zig");
const date_module = @import("date.zig");
const field_values = @import("field_values.zig");
const media_types = @import("media_types.zig");
const content_coding = @import("content_coding.zig");
const request_head = @import("request_head.zig");
const response_head = @import("response_head.zig");
const multipart_module = @import("multipart.zig");
const FilePath = file_path.FilePath;
const Multipart = multipart_module.Multipart;
const RequestHead = request_head.RequestHead;
const Coding = content_coding.Coding;
const MediaType = media_types.MediaType;

/// A [[static]] table; the strings live as long as the server.
pub const Options = struct {
    /// Begins with a slash.
    route: []const u8,
    /// Absolute.
    directory: [:0]const u8,
    /// Empty for no such field.
    cache_control: []const u8,
    /// The name of the file that answers for a directory; empty for none.
    index: []const u8,
    /// Where there is no file the application answers.
    fallthrough: bool,
};

/// Longest `cache_control` and `index`; the launcher checks them.
pub const option_bytes_max = 255;

/// Bodies up to this size are read, and leave with the head in one send: that is faster than two
/// calls for head and file.
const copied_bytes_max = 32 * 1024;
const first_bytes = 4096;
/// Room for a head beside what it repeats of the request and the options.
const head_bytes_max = 2048;
/// What the caller has to give.
pub const buffer_bytes_min = copied_bytes_max + head_bytes_max + option_bytes_max;

/// How long the directory that a path led to is believed to be still there.
const directory_check_ms = 1000;

/// Times before 1990 are not when a file was changed: reproducible images and packages have them.
const credible_time_ns: u64 = 631_152_000 * std.time.ns_per_s;

const name_bytes_max = file_path.path_bytes_max + option_bytes_max + 8;

const Site = struct {
    options: Options,
    /// Without the slash at its end.
    route: []const u8,
    directory: sys.Fd,
    checked_ms: u64,
};

/// What of a request matters here, and the time.
pub const Request = struct {
    head: *const RequestHead,
    /// What the head's spans refer to.
    bytes: []const u8,
    persistence: response_head.Persistence,
    now_ms: u64,
    /// Since the epoch.
    now: u64,
    date: *const [date_module.length]u8,
    /// Given back to the client.
    request_id: []const u8 = "",

    fn method(self: *const Request) []const u8 {
        return self.head.method.of(self.bytes);
    }
};

pub const Answer = struct {
    status: u16,
    /// The head, and the body where that is not in `file`; in the caller's buffer.
    bytes: []const u8,
    /// To be closed by whoever sends it; `no_fd` for none.
    file: sys.Fd = sys.no_fd,
    range: ranges.Range = .{ .start = 0, .length = 0 },
    /// Instead of `range`.
    multipart: ?*Multipart = null,
};

const Found = struct {
    fd: sys.Fd,
    info: sys.FileInfo,
    coding: ?Coding = null,
};

const FindError = error{
    /// There is none, or none that may be seen.
    Missing,
    /// There is a directory, and its URL has a slash at its end.
    Redirect,
    Exhausted,
};

pub const StaticFiles = struct {
    gpa: std.mem.Allocator,
    /// The longest route first.
    sites: []Site,
    has_openat2: bool = sys.is_linux,
    /// For the delimiters of multipart bodies.
    seed: u64,
    boundaries: u64 = 0,
    path: [file_path.path_bytes_max]u8 = undefined,
    name: [name_bytes_max:0]u8 = undefined,
    etag: [64]u8 = undefined,
    selected: [ranges.ranges_max]ranges.Range = undefined,

    pub fn create(
        gpa: std.mem.Allocator,
        tables: []const Options,
    ) error{ OutOfMemory, Unexpected }!*StaticFiles {
        const self = try gpa.create(StaticFiles);
        errdefer gpa.destroy(self);
        const sites = try gpa.alloc(Site, tables.len);
        errdefer gpa.free(sites);
        self.* = .{ .gpa = gpa, .sites = sites, .seed = sys.monotonic_ns() ^ @intFromPtr(self) };
        var opened: usize = 0;
        errdefer for (sites[0..opened]) |site| sys.close(site.directory);
        for (tables, sites) |options, *site| {
            site.* = .{
                .options = options,
                .route = std.mem.trimRight(u8, options.route, "/"),
                .directory = sys.open_directory(options.directory) catch return error.Unexpected,
                .checked_ms = sys.monotonic_ms(),
            };
            opened += 1;
        }
        std.mem.sortUnstable(Site, sites, {}, has_longer_route);
        return self;
    }

    pub fn destroy(self: *StaticFiles) void {
        for (self.sites) |site| sys.close(site.directory);
        self.gpa.free(self.sites);
        self.gpa.destroy(self);
    }

    fn has_longer_route(_: void, one: Site, other: Site) bool {
        return one.route.len > other.route.len;
    }

    // ---- Which site, which file ----------------------------------------------------------------

    /// Whether a route is for this request. The application may still have to answer it.
    pub fn is_routed(self: *StaticFiles, head: *const RequestHead, bytes: []const u8) bool {
        return self.find_site(head, bytes) != null;
    }

    const Routed = struct { site: *Site, decoded: ?[]const u8 };

    fn find_site(self: *StaticFiles, head: *const RequestHead, bytes: []const u8) ?Routed {
        if (head.target_form == .asterisk_form) return null;
        const raw = head.path.of(bytes);
        const decoded = file_path.decode(&self.path, raw);
        for (self.sites) |*site| {
            if (!file_path.is_below(decoded orelse raw, site.route)) continue;
            return .{ .site = site, .decoded = decoded };
        }
        return null;
    }

    /// The answer, or null when it is the application's business. `buffer` has at least
    /// `buffer_bytes_min`.
    pub fn answer(self: *StaticFiles, request: *const Request, buffer: []u8) ?Answer {
        const routed = self.find_site(request.head, request.bytes) orelse return null;
        const site = routed.site;
        const method = request.method();
        var writer: HeadWriter = .{ .buffer = buffer, .request = request };
        if (!std.mem.eql(u8, method, "GET") and !std.mem.eql(u8, method, "HEAD")) {
            if (site.options.fallthrough) return null;
            writer.begin(.method_not_allowed);
            writer.line("Allow", "GET, HEAD");
            return writer.refuse();
        }
        const raw = request.head.path.of(request.bytes);
        const path = if (routed.decoded) |decoded|
            file_path.resolve(raw, decoded, site.route)
        else
            null;
        self.refresh(site, request.now_ms);
        const found = self.find(site, path, request) catch |err| switch (err) {
            error.Missing => {
                if (site.options.fallthrough) return null;
                writer.begin(.not_found);
                return writer.refuse();
            },
            error.Redirect => return writer.redirect(),
            error.Exhausted => return refuse_for_now(&writer),
        };
        const media_type = media_types.of(self.name_of(found));
        return self.represent(site, found, media_type, &writer);
    }

    fn refuse_for_now(writer: *HeadWriter) Answer {
        writer.begin(.service_unavailable);
        writer.line("Retry-After", "1");
        return writer.refuse();
    }

    /// The file's name without the suffix of its coding: what `find` left in `name`.
    fn name_of(self: *StaticFiles, found: Found) []const u8 {
        const whole = std.mem.sliceTo(&self.name, 0);
        const suffix = if (found.coding) |coding| coding.suffix().len else 0;
        return whole[0 .. whole.len - suffix];
    }

    /// A deployment may have put another directory in the place of the one that was opened.
    fn refresh(_: *StaticFiles, site: *Site, now_ms: u64) void {
        if (now_ms -| site.checked_ms < directory_check_ms) return;
        site.checked_ms = now_ms;
        const directory = sys.open_directory(site.options.directory) catch return;
        sys.close(site.directory);
        site.directory = directory;
    }

    fn find(
        self: *StaticFiles,
        site: *const Site,
        path: ?FilePath,
        request: *const Request,
    ) FindError!Found {
        const wanted = path orelse return error.Missing;
        const index = site.options.index;
        if (wanted.is_directory) {
            if (index.len == 0) return error.Missing;
            const length = self.put_index(wanted.path, index);
            return self.find_file(site, length, request) catch |err| switch (err) {
                error.Redirect => return error.Missing, // a directory with the index's name
                else => return err,
            };
        }
        if (wanted.path.len == 0) return self.find_index(site, wanted.path);
        @memcpy(self.name[0..wanted.path.len], wanted.path);
        return self.find_file(site, wanted.path.len, request) catch |err| switch (err) {
            error.Redirect => return self.find_index(site, wanted.path),
            else => return err,
        };
    }

    /// A directory was asked for as a file. It is one only where it has an index.
    fn find_index(self: *StaticFiles, site: *const Site, path: []const u8) FindError {
        const index = site.options.index;
        if (index.len == 0) return error.Missing;
        const length = self.put_index(path, index);
        const fd = self.open(site, length, "") catch |err| return err;
        defer sys.close(fd);
        const info = sys.file_info(fd) catch return error.Missing;
        return if (info.kind == .regular) error.Redirect else error.Missing;
    }

    /// Puts the path of a directory's index into `name`; its length.
    fn put_index(self: *StaticFiles, path: []const u8, index: []const u8) usize {
        var length = path.len;
        @memmove(self.name[0..path.len], path);
        if (length > 0) {
            self.name[length] = '/';
            length += 1;
        }
        @memcpy(self.name[length..][0..index.len], index);
        return length + index.len;
    }

    /// Opens what the first `length` bytes of `name` name, in the best coding that the client
    /// takes. `Redirect` for a directory.
    fn find_file(
        self: *StaticFiles,
        site: *const Site,
        length: usize,
        request: *const Request,
    ) FindError!Found {
        if (media_types.of(self.name[0..length]).compressible) {
            const accepted = content_coding.accepted(request.head, request.bytes);
            for (accepted.codings()) |coding| {
                const fd = self.open(site, length, coding.suffix()) catch |err| switch (err) {
                    error.Missing => continue,
                    else => |other| return other,
                };
                if (regular_info(fd)) |info| {
                    return .{ .fd = fd, .info = info, .coding = coding };
                }
                sys.close(fd);
            }
        }
        const fd = try self.open(site, length, "");
        errdefer sys.close(fd);
        const info = sys.file_info(fd) catch return error.Missing;
        return switch (info.kind) {
            .regular => .{ .fd = fd, .info = info },
            .directory => error.Redirect,
            // A FIFO or a device would make whoever reads it wait.
            .other => error.Missing,
        };
    }

    fn regular_info(fd: sys.Fd) ?sys.FileInfo {
        const info = sys.file_info(fd) catch return null;
        return if (info.kind == .regular) info else null;
    }

    fn open(
        self: *StaticFiles,
        site: *const Site,
        length: usize,
        suffix: []const u8,
    ) FindError!sys.Fd {
        @memcpy(self.name[length..][0..suffix.len], suffix);
        self.name[length + suffix.len] = 0;
        const name = self.name[0 .. length + suffix.len :0];
        if (self.has_openat2) {
            if (sys.open_beneath(site.directory, name)) |fd| {
                return fd;
            } else |err| switch (err) {
                error.NotFound => return error.Missing,
                error.DescriptorsExhausted => return error.Exhausted,
                // An old kernel, or a sandbox that forbids what it does not know.
                error.Unsupported => self.has_openat2 = false,
            }
        }
        return open_by_steps(site.directory, name) catch |err| switch (err) {
            error.DescriptorsExhausted => error.Exhausted,
            error.NotFound, error.Unsupported => error.Missing,
        };
    }

    // ---- The response --------------------------------------------------------------------------

    fn represent(
        self: *StaticFiles,
        site: *const Site,
        found: Found,
        media_type: MediaType,
        writer: *HeadWriter,
    ) Answer {
        const request = writer.request;
        const credible = found.info.modified_ns >= credible_time_ns;
        const seconds = found.info.modified_ns / std.time.ns_per_s;
        const representation: Representation = .{
            .options = &site.options,
            .found = found,
            .media_type = media_type,
            .validators = .{
                .etag = write_etag(&self.etag, found, credible),
                // Never later than the Date beside it (RFC 9110 8.8.2.1).
                .modified = if (credible) @min(seconds, request.now) else null,
            },
        };
        const validators = representation.validators;
        switch (conditional.evaluate(request.head, request.bytes, validators, request.now)) {
            .proceed => {},
            .not_modified => {
                sys.close(found.fd);
                return writer.not_modified(&representation);
            },
            .failed => {
                sys.close(found.fd);
                writer.begin(.precondition_failed);
                return writer.refuse();
            },
        }
        return switch (self.select(request, &representation)) {
            .whole => writer.whole(&representation),
            .unsatisfiable => {
                sys.close(found.fd);
                return writer.unsatisfiable(found.info.size);
            },
            .parts => |parts| if (parts.len == 1)
                writer.part(&representation, parts[0])
            else
                self.answer_parts(writer, &representation, parts),
        };
    }

    fn select(
        self: *StaticFiles,
        request: *const Request,
        representation: *const Representation,
    ) ranges.Selection {
        // Only GET has ranges (RFC 9110 14.2).
        if (!std.mem.eql(u8, request.method(), "GET")) return .whole;
        const value = switch (field_values.single(request.head, request.bytes, .range)) {
            .none, .repeated => return .whole,
            .value => |value| value,
        };
        if (!conditional.range_applies(
            request.head,
            request.bytes,
            representation.validators,
            request.now,
        )) return .whole;
        return ranges.select(value, representation.found.info.size, &self.selected);
    }

    fn answer_parts(
        self: *StaticFiles,
        writer: *HeadWriter,
        representation: *const Representation,
        parts: []const ranges.Range,
    ) Answer {
        const found = representation.found;
        const boundary = self.next_boundary();
        const text = representation.media_type.text;
        const multipart = Multipart.create(
            self.gpa,
            parts,
            found.info.size,
            text,
            &boundary,
        ) catch {
            sys.close(found.fd);
            return refuse_for_now(writer);
        };
        writer.begin(.partial_content);
        writer.put("Content-Type: multipart/byteranges; boundary=");
        writer.put(&boundary);
        writer.put("\r\n");
        writer.describe(representation);
        writer.number("Content-Length", multipart.content_length());
        var result = writer.finish();
        result.file = found.fd;
        result.multipart = multipart;
        return result;
    }

    /// A delimiter that stands in no file that was not made for it.
    fn next_boundary(self: *StaticFiles) [multipart_module.boundary_bytes]u8 {
        self.boundaries += 1;
        var words: [2]u64 = undefined;
        for (&words, 0..) |*word, index| {
            word.* = std.hash.Wyhash.hash(self.seed +% index, std.mem.asBytes(&self.boundaries));
        }
        return std.fmt.bytesToHex(std.mem.asBytes(&words), .lower);
    }
};

/// From directory to directory, each name opened without following a symbolic link.
fn open_by_steps(directory: sys.Fd, path: [:0]u8) sys.FindError!sys.Fd {
    var current = directory;
    defer if (current != directory) sys.close(current);
    var rest: [:0]u8 = path;
    while (std.mem.indexOfScalar(u8, rest, '/')) |slash| {
        rest[slash] = 0;
        const opened = sys.open_directory_in(current, rest[0..slash :0]);
        // Whole again for whoever looks at the name.
        rest[slash] = '/';
        const next = try opened;
        if (current != directory) sys.close(current);
        current = next;
        rest = rest[slash + 1 ..];
    }
    return sys.open_file_in(current, rest);
}

/// Strong: a file whose contents change has another time, or another size. Where the time is none,
/// that of the last change of the inode stands in.
fn write_etag(storage: *[64]u8, found: Found, credible: bool) []const u8 {
    const info = &found.info;
    const time = if (credible) info.modified_ns else info.changed_ns;
    const coding = if (found.coding) |coding| coding.name() else "";
    return std.fmt.bufPrint(storage, "\"{x}-{x}{s}{s}\"", .{
        time,
        info.size,
        if (coding.len > 0) "-" else "",
        coding,
    }) catch unreachable; // two numbers of 16 digits at the most, and a short word
}

const Representation = struct {
    options: *const Options,
    found: Found,
    media_type: MediaType,
    validators: conditional.Validators,
};

const Status = enum(u16) {
    ok = 200,
    partial_content = 206,
    moved_permanently = 301,
    not_modified = 304,
    not_found = 404,
    method_not_allowed = 405,
    precondition_failed = 412,
    range_not_satisfiable = 416,
    service_unavailable = 503,

    fn line(self: Status) []const u8 {
        return switch (self) {
            .ok => "200 OK",
            .partial_content => "206 Partial Content",
            .moved_permanently => "301 Moved Permanently",
            .not_modified => "304 Not Modified",
            .not_found => "404 Not Found",
            .method_not_allowed => "405 Method Not Allowed",
            .precondition_failed => "412 Precondition Failed",
            .range_not_satisfiable => "416 Range Not Satisfiable",
            .service_unavailable => "503 Service Unavailable",
        };
    }
};

/// Writes a response's head into the caller's buffer.
const HeadWriter = struct {
    buffer: []u8,
    request: *const Request,
    len: usize = 0,
    status: Status = .ok,

    fn put(self: *HeadWriter, text: []const u8) void {
        @memcpy(self.buffer[self.len..][0..text.len], text);
        self.len += text.len;
    }

    fn line(self: *HeadWriter, name: []const u8, value: []const u8) void {
        self.put(name);
        self.put(": ");
        self.put(value);
        self.put("\r\n");
    }

    fn put_number(self: *HeadWriter, value: u64) void {
        var digits: [20]u8 = undefined;
        var start: usize = digits.len;
        var rest = value;
        while (true) {
            start -= 1;
            digits[start] = '0' + @as(u8, @intCast(rest % 10));
            rest /= 10;
            if (rest == 0) break;
        }
        self.put(digits[start..]);
    }

    fn number(self: *HeadWriter, name: []const u8, value: u64) void {
        self.put(name);
        self.put(": ");
        self.put_number(value);
        self.put("\r\n");
    }

    fn begin(self: *HeadWriter, status: Status) void {
        self.len = 0;
        self.status = status;
        self.put("HTTP/1.1 ");
        self.put(status.line());
        self.put("\r\n");
        self.line("Date", self.request.date);
        if (self.request.request_id.len > 0) self.line("X-Request-Id", self.request.request_id);
        self.line("Server", "serve-zig");
    }

    /// Ends the head.
    fn finish(self: *HeadWriter) Answer {
        switch (self.request.persistence) {
            .implied => {},
            .keep_alive => self.line("Connection", "keep-alive"),
            .close => self.line("Connection", "close"),
        }
        self.put("\r\n");
        return .{ .status = @intFromEnum(self.status), .bytes = self.buffer[0..self.len] };
    }

    fn is_head_request(self: *const HeadWriter) bool {
        return std.mem.eql(u8, self.request.method(), "HEAD");
    }

    /// Ends a head that `begin` has begun, with the status for a body.
    fn refuse(self: *HeadWriter) Answer {
        const text = self.status.line();
        self.line("Content-Type", "text/plain; charset=utf-8");
        self.number("Content-Length", text.len + 1);
        var result = self.finish();
        if (self.is_head_request()) return result;
        self.put(text);
        self.put("\n");
        result.bytes = self.buffer[0..self.len];
        return result;
    }

    /// To the same path with a slash behind it. Relative to it (RFC 3986 5.2), so that it holds
    /// behind a proxy that has taken a prefix off, and leads to no other host.
    fn redirect(self: *HeadWriter) Answer {
        const request = self.request;
        const raw = request.head.path.of(request.bytes);
        const query = request.head.query.of(request.bytes);
        const slash = std.mem.lastIndexOfScalar(u8, raw, '/') orelse raw.len;
        if (raw.len + query.len + head_bytes_max > self.buffer.len) {
            self.begin(.not_found);
            return self.refuse();
        }
        self.begin(.moved_permanently);
        self.put("Location: ./");
        self.put(raw[@min(slash + 1, raw.len)..]);
        self.put("/");
        if (request.head.has_query) self.put("?");
        self.put(query);
        self.put("\r\n");
        return self.refuse();
    }

    fn unsatisfiable(self: *HeadWriter, size: u64) Answer {
        self.begin(.range_not_satisfiable);
        self.put("Content-Range: bytes */");
        self.put_number(size);
        self.put("\r\n");
        return self.refuse();
    }

    /// What 304 shares with 200 (RFC 9110 15.4.5).
    fn describe_for_cache(self: *HeadWriter, representation: *const Representation) void {
        self.line("ETag", representation.validators.etag);
        if (representation.media_type.compressible) self.line("Vary", "Accept-Encoding");
        const cache_control = representation.options.cache_control;
        if (cache_control.len > 0) self.line("Cache-Control", cache_control);
    }

    fn describe(self: *HeadWriter, representation: *const Representation) void {
        if (representation.validators.modified) |seconds| {
            self.line("Last-Modified", &date_module.format(seconds));
        }
        self.describe_for_cache(representation);
        if (representation.found.coding) |coding| self.line("Content-Encoding", coding.name());
        self.line("Accept-Ranges", "bytes");
    }

    fn not_modified(self: *HeadWriter, representation: *const Representation) Answer {
        self.begin(.not_modified);
        self.describe_for_cache(representation);
        return self.finish();
    }

    fn whole(self: *HeadWriter, representation: *const Representation) Answer {
        self.begin(.ok);
        return self.content(representation, .{
            .start = 0,
            .length = representation.found.info.size,
        });
    }

    fn part(
        self: *HeadWriter,
        representation: *const Representation,
        range: ranges.Range,
    ) Answer {
        self.begin(.partial_content);
        self.put("Content-Range: bytes ");
        self.put_number(range.start);
        self.put("-");
        self.put_number(range.start + range.length - 1);
        self.put("/");
        self.put_number(representation.found.info.size);
        self.put("\r\n");
        return self.content(representation, range);
    }

    /// Ends the head and adds the body, or says where it is.
    fn content(
        self: *HeadWriter,
        representation: *const Representation,
        range: ranges.Range,
    ) Answer {
        const fd = representation.found.fd;
        self.line("Content-Type", representation.media_type.text);
        self.number("Content-Length", range.length);
        self.describe(representation);
        var result = self.finish();
        if (range.length == 0 or self.is_head_request()) {
            sys.close(fd);
            return result;
        }
        if (range.length > copied_bytes_max) {
            const first = self.buffer[self.len..][0..first_bytes];
            const n = sys.read_at(fd, first, range.start) catch 0;
            self.len += n;
            result.bytes = self.buffer[0..self.len];
            result.file = fd;
            result.range = .{ .start = range.start + n, .length = range.length - n };
            return result;
        }
        defer sys.close(fd);
        const room = self.buffer[self.len..][0..@intCast(range.length)];
        const count = sys.read_at(fd, room, range.start) catch 0;
        // It has become shorter since it was looked at; next time it is what it says.
        if (count < room.len) return StaticFiles.refuse_for_now(self);
        self.len += count;
        result.bytes = self.buffer[0..self.len];
        return result;
    }
};
