//! Python strings that are made once: environ keys, method names, common values.
//!
//! Made at start with the GIL, never freed, read by every worker with the GIL.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const fields = core.fields;
const Object = capi.Object;

/// Fields of this struct are interned under their own names.
pub const Keys = struct {
    REQUEST_METHOD: *Object,
    SCRIPT_NAME: *Object,
    PATH_INFO: *Object,
    QUERY_STRING: *Object,
    SERVER_NAME: *Object,
    SERVER_PORT: *Object,
    SERVER_PROTOCOL: *Object,
    SERVER_SOFTWARE: *Object,
    REMOTE_ADDR: *Object,
    REMOTE_PORT: *Object,
    RAW_URI: *Object,
    REQUEST_URI: *Object,
    HTTP_HOST: *Object,
    @"wsgi.version": *Object,
    @"wsgi.url_scheme": *Object,
    @"wsgi.input": *Object,
    @"wsgi.errors": *Object,
    @"wsgi.multithread": *Object,
    @"wsgi.multiprocess": *Object,
    @"wsgi.run_once": *Object,
    @"wsgi.file_wrapper": *Object,
    @"wsgi.input_terminated": *Object,
    @"wsgi.early_hints": *Object,
    @"x-wsgiorg.suspend": *Object,
    @"x-wsgiorg.fdevent.readable": *Object,
    @"x-wsgiorg.fdevent.writable": *Object,
    @"x-wsgiorg.fdevent.timeout": *Object,
    @"serve_zig.client_disconnected": *Object,
    @"serve_zig.any_thread": *Object,
    @"serve_zig.trailers": *Object,
    @"serve_zig.request_id": *Object,
    @"serve_zig.queue_seconds": *Object,
    @"serve_zig.phases": *Object,
    close: *Object,
    read: *Object,
    readable: *Object,
    tell: *Object,
    fileno: *Object,
    flush: *Object,
    raw: *Object,
    file: *Object,
    tempfile: *Object,
    _TemporaryFileWrapper: *Object,
};

const methods = [_][:0]const u8{
    "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH",
};

pub const Names = struct {
    keys: Keys,
    /// By `fields.Name`; null where the field does not reach the environ under one key.
    environ: [fields.count]?*Object,
    methods: [methods.len]*Object,
    /// The method of every base environ.
    get: *Object,
    empty_string: *Object,
    empty_bytes: *Object,
    http_1_0: *Object,
    http_1_1: *Object,
    http: *Object,
    https: *Object,
    comma: *Object,
    semicolon: *Object,

    pub fn init() capi.Error!Names {
        var names: Names = .{
            .keys = undefined,
            .environ = @splat(null),
            .methods = undefined,
            .get = try capi.interned("GET"),
            .empty_string = try capi.interned(""),
            .empty_bytes = try capi.bytes_from(""),
            .http_1_0 = try capi.interned("HTTP/1.0"),
            .http_1_1 = try capi.interned("HTTP/1.1"),
            .http = try capi.interned("http"),
            .https = try capi.interned("https"),
            .comma = try capi.interned(", "),
            .semicolon = try capi.interned("; "),
        };
        inline for (@typeInfo(Keys).@"struct".fields) |field| {
            @field(names.keys, field.name) = try capi.interned(field.name);
        }
        for (&names.environ, 0..) |*key, index| {
            const text = fields.environ_key(@enumFromInt(index)) orelse continue;
            key.* = try capi.interned(text);
        }
        for (&names.methods, methods) |*name, text| name.* = try capi.interned(text);
        return names;
    }

    /// A new reference to the method's name.
    pub fn method(self: *const Names, bytes: []const u8) capi.Error!*Object {
        inline for (methods, 0..) |text, index| {
            if (std.mem.eql(u8, bytes, text)) return capi.new(self.methods[index]);
        }
        return capi.latin1(bytes);
    }
};
