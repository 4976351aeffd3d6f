//! The environ of a request (PEP 3333, "environ Variables"; RFC 3875 for the CGI names).
//!
//! Each worker has a template, a dict with what its last request had, and a request's environ is a
//! copy of it: only what differs from the last request is set, and what this request lacks is taken
//! out. Values that come again and again (a browser's fields) are compared with the last one of
//! their name before a new string is made. GIL held throughout; the caches are one for the process.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const names_module = @import("names.zig");
const handles = @import("handles.zig");
const input_stream = @import("input_stream.zig");
const fields = core.fields;
const Object = capi.Object;
const Crew = core.server.Crew;
const Names = names_module.Names;
const Keys = names_module.Keys;
const Exchange = core.exchange.Exchange;
const Connection = core.connection.Connection;
const Claims = core.forwarded.Claims;

/// A value longer than this is not worth comparing.
const cached_bytes_max = 512;
/// Keys of field names that the core has no name for.
const other_keys = 256;
const other_name_bytes_max = 64;

/// The text and the object of a value seen before; the text is the object's own (ASCII only).
const Cached = struct {
    text: []const u8 = "",
    object: ?*Object = null,

    /// A new reference to a `str` of these bytes.
    fn get(self: *Cached, bytes: []const u8) capi.Error!*Object {
        if (self.object) |object| {
            if (std.mem.eql(u8, self.text, bytes)) return capi.new(object);
        }
        const object = try capi.latin1(bytes);
        if (bytes.len > cached_bytes_max) return object;
        var size: capi.ssize = 0;
        const text = capi.PyUnicode_AsUTF8AndSize(object, &size) orelse {
            capi.PyErr_Clear();
            return object;
        };
        if (size != bytes.len) return object;
        capi.drop_maybe(self.object);
        self.object = capi.new(object);
        self.text = text[0..bytes.len];
        return object;
    }
};

/// Who the client of a slot is, kept from its first request to the slot's next use.
const Remote = extern struct {
    address: ?*Object = null,
    port: ?*Object = null,
    generation: u32 = 0,
};

const OtherKey = extern struct {
    name: [other_name_bytes_max]u8,
    len: usize,
    key: ?*Object,
};

/// Keys that every environ has and that differ between requests.
const Changing = enum {
    method,
    path,
    query,
    raw_uri,
    request_uri,
    address,
    port,
    protocol,
    // Only trusted proxies change these.
    scheme,
    server_port,
    script_name,
};

/// By `fields.Name`; null where the application does not get the field under one key.
const FieldKeys = [fields.count]?*Object;

/// Who the fields of a request come from. Applications and their middleware believe forwarded
/// fields, so these are shown only where they may be believed.
const Sender = enum { stranger, proxy, proxy_that_names_host };

/// What each request has of its own, in the order of their keys.
const GivenObjects = [8]*Object;

fn given_keys(keys: *const Keys) GivenObjects {
    return .{
        keys.@"wsgi.input",
        keys.@"wsgi.early_hints",
        keys.@"serve_zig.client_disconnected",
        keys.@"serve_zig.any_thread",
        keys.@"x-wsgiorg.suspend",
        keys.@"x-wsgiorg.fdevent.readable",
        keys.@"x-wsgiorg.fdevent.writable",
        keys.@"x-wsgiorg.fdevent.timeout",
    };
}

fn given_objects(call: *handles.Call) GivenObjects {
    return .{
        &call.input.head,
        call.object(.early_hints),
        call.object(.client_disconnected),
        call.object(.any_thread),
        call.object(.@"suspend"),
        call.object(.readable),
        call.object(.writable),
        call.object(.timeout),
    };
}

/// What a worker's next environ is copied from. No other code sees the dict: the collector, which
/// could show it, does not know of it.
pub const Template = struct {
    dict: *Object,
    /// The listener's, borrowed.
    base: *Object,
    /// The dict has what a trusted proxy said.
    has_claims: bool = false,
    /// The objects in the dict, borrowed from it; null where it has the base's.
    changing: std.EnumArray(Changing, ?*Object) = .initFill(null),
    fields: [fields.count]?*Object = @splat(null),
    /// The fields that the dict has.
    present: std.StaticBitSet(fields.count) = .initEmpty(),

    /// The call whose objects are in the dict, as the memory of the next one's. These references
    /// are not counted, since the server alone sees the dict: objects end when the request's own
    /// references do, and begin with the next request at the same place. So a copy of the dict has
    /// the new objects without that each of them is set, which costs a tenth of a small request.
    call: ?*handles.Call = null,

    /// Has the dict refer to the objects of this call, which are alive. After an error, which
    /// replacing a value does not have, the template must be left as it is, for ever.
    pub fn refer_to(self: *Template, keys: *const Keys, call: *handles.Call) capi.Error!void {
        if (self.call == call) return;
        try self.replace(keys, given_objects(call));
        for (given_objects(call)) |object| capi.uncount(object, 1);
        call.retain();
        if (self.call) |last| last.release();
        self.call = call;
    }

    pub fn drop(self: *Template, keys: *const Keys) void {
        self.replace(keys, @splat(&capi._Py_NoneStruct)) catch return;
        if (self.call) |last| last.release();
        capi.drop(self.dict);
    }

    fn replace(self: *Template, keys: *const Keys, by: GivenObjects) capi.Error!void {
        const before: ?GivenObjects = if (self.call) |call| given_objects(call) else null;
        for (given_keys(keys), by, 0..) |key, object, index| {
            // The dict drops a reference that was not counted, of an object that may have none.
            if (before) |last| capi.recount(last[index], 2);
            try capi.checked(capi.PyDict_SetItem(self.dict, key, object));
            if (before) |last| capi.uncount(last[index], 1);
        }
    }

    /// Sets a key unless it has this very value; the value's reference is used up.
    fn set(self: *Template, which: Changing, key: *Object, value: *Object) capi.Error!void {
        const held = self.changing.getPtr(which);
        defer capi.drop(value);
        if (held.* == value) return;
        held.* = null;
        try capi.checked(capi.PyDict_SetItem(self.dict, key, value));
        held.* = value;
    }

    fn set_as_base(self: *Template, which: Changing, key: *Object) capi.Error!void {
        const value = capi.PyDict_GetItemWithError(self.base, key) orelse return error.Raised;
        try self.set(which, key, capi.new(value));
    }

    /// The same for a field.
    fn set_field(self: *Template, number: usize, key: *Object, value: *Object) capi.Error!void {
        defer capi.drop(value);
        if (self.fields[number] == value) return;
        self.fields[number] = null;
        self.present.set(number);
        try capi.checked(capi.PyDict_SetItem(self.dict, key, value));
        self.fields[number] = value;
    }

    /// Takes out the fields that the request does not have, so that it does not see another's.
    fn keep_only(
        self: *Template,
        wanted: std.StaticBitSet(fields.count),
        names: *const Names,
    ) capi.Error!void {
        var surplus = self.present.differenceWith(wanted).iterator(.{});
        while (surplus.next()) |number| {
            try capi.checked(capi.PyDict_DelItem(self.dict, names.environ[number].?));
            self.fields[number] = null;
            self.present.unset(number);
        }
    }
};

pub const Environs = struct {
    names: *const Names,
    /// One dict for each listener.
    bases: []*Object,
    values: [fields.count]Cached = @splat(.{}),
    target: Cached = .{},
    path: Cached = .{},
    query: Cached = .{},
    address: Cached = .{},
    server_port: Cached = .{},
    script_name: Cached = .{},
    shown: std.EnumArray(Sender, FieldKeys),
    other: []OtherKey,
    remotes: []Remote,
    /// For whoever makes spans of requests.
    tells_phases: bool = false,

    pub fn init(
        names: *const Names,
        bases: []*Object,
        connections: u32,
        flavour: core.forwarded.Flavour,
    ) (capi.Error || error{OutOfMemory})!Environs {
        return .{
            .names = names,
            .bases = bases,
            .shown = shown_keys(names, flavour),
            .other = try core.pages.alloc(OtherKey, other_keys),
            .remotes = try core.pages.alloc(Remote, connections),
        };
    }

    fn shown_keys(
        names: *const Names,
        flavour: core.forwarded.Flavour,
    ) std.EnumArray(Sender, FieldKeys) {
        var shown: std.EnumArray(Sender, FieldKeys) = .initFill(names.environ);
        for (0..fields.known_count) |number| {
            const of_flavour = core.forwarded.flavour_of(@enumFromInt(number)) orelse continue;
            shown.getPtr(.stranger)[number] = null;
            if (of_flavour == flavour) continue;
            shown.getPtr(.proxy)[number] = null;
            shown.getPtr(.proxy_that_names_host)[number] = null;
        }
        shown.getPtr(.proxy_that_names_host)[@intFromEnum(fields.Name.host)] = null;
        return shown;
    }

    /// A template for a worker's requests at a listener.
    pub fn create_template(self: *const Environs, listener: usize) capi.Error!Template {
        const dict = try capi.owned(capi.PyDict_Copy(self.bases[listener]));
        capi.PyObject_GC_UnTrack(dict);
        return .{ .dict = dict, .base = self.bases[listener] };
    }

    /// A new dict for the worker's request, to whose objects the template refers.
    /// After an error the template is of no use any more.
    pub fn build(self: *Environs, crew: *Crew, template: *Template) capi.Error!*Object {
        const keys = &self.names.keys;
        try self.set_request_line(template, crew.exchange);
        const claims: ?*const Claims = if (crew.exchange.claims) |*claims| claims else null;
        try self.set_remote(template, crew.connection, claims);
        if (claims) |said| {
            try self.set_claims(template, crew.exchange, said);
        } else if (template.has_claims) {
            try self.unset_claims(template);
        }
        const sender: Sender = if (claims) |said|
            (if (said.host.len > 0) .proxy_that_names_host else .proxy)
        else
            .stranger;
        const longer = try self.set_fields(template, crew, sender);

        const environ = try capi.owned(capi.PyDict_Copy(template.dict));
        errdefer capi.drop(environ);
        // A copy is tracked if its original is.
        if (capi.PyObject_GC_IsTracked(environ) == 0) capi.PyObject_GC_Track(environ);
        if (longer) try self.put_other_fields(environ, crew, sender);
        if (crew.exchange.head.framing == .chunked) {
            const trailers = try input_stream.create_trailers(&crew.exchange.body);
            try put(environ, keys.@"serve_zig.trailers", trailers);
        }
        const id = try capi.latin1(crew.exchange.request_id());
        try put(environ, keys.@"serve_zig.request_id", id);
        const queued: f64 = @floatFromInt(crew.exchange.record.waited_ns());
        const seconds = try capi.owned(capi.PyFloat_FromDouble(queued / std.time.ns_per_s));
        try put(environ, keys.@"serve_zig.queue_seconds", seconds);
        if (self.tells_phases) {
            const phases = try phases_of(&crew.exchange.record.timing);
            try put(environ, keys.@"serve_zig.phases", phases);
        }
        return environ;
    }

    /// A tuple of the seconds that each phase before the application took, in their order.
    fn phases_of(timing: *const core.timing.Timing) capi.Error!*Object {
        const before = [_]core.timing.Phase{ .head, .body, .queue, .gil };
        const tuple = try capi.owned(capi.PyTuple_New(before.len));
        errdefer capi.drop(tuple);
        for (before, 0..) |phase, index| {
            const spent: f64 = @floatFromInt(timing.of(phase));
            const seconds = try capi.owned(capi.PyFloat_FromDouble(spent / std.time.ns_per_s));
            // Takes the reference, also when it fails.
            try capi.checked(capi.PyTuple_SetItem(tuple, @intCast(index), seconds));
        }
        return tuple;
    }

    fn set_request_line(
        self: *Environs,
        template: *Template,
        exchange: *const Exchange,
    ) capi.Error!void {
        const names = self.names;
        const keys = &names.keys;
        const head = &exchange.head;
        const bytes = exchange.bytes;
        const method = try names.method(head.method.of(bytes));
        try template.set(.method, keys.REQUEST_METHOD, method);
        const target = try self.target.get(head.target.of(bytes));
        try template.set(.raw_uri, keys.RAW_URI, capi.new(target));
        try template.set(.request_uri, keys.REQUEST_URI, target);
        try template.set(.path, keys.PATH_INFO, try self.path_info(exchange));
        const query = if (head.query.len == 0)
            capi.new(names.empty_string)
        else
            try self.query.get(head.query.of(bytes));
        try template.set(.query, keys.QUERY_STRING, query);
        const protocol = switch (head.version) {
            .http_1_0 => names.http_1_0,
            .http_1_1 => names.http_1_1,
        };
        try template.set(.protocol, keys.SERVER_PROTOCOL, capi.new(protocol));
    }

    /// The path without its percent-encoding, each byte one character (PEP 3333, "Unicode Issues").
    fn path_info(self: *Environs, exchange: *const Exchange) capi.Error!*Object {
        const head = &exchange.head;
        if (head.target_form == .asterisk_form) return self.path.get("*");
        const path = head.path.of(exchange.bytes);
        // "http://host" is the same resource as "http://host/" (RFC 9110 4.2.3).
        if (path.len == 0) return self.path.get("/");
        if (!core.target.has_percent(path)) return self.path.get(path);
        var storage: [2048]u8 = undefined;
        if (path.len <= storage.len) return capi.latin1(core.target.percent_decode(&storage, path));
        const gpa = std.heap.c_allocator;
        const decoded = gpa.alloc(u8, path.len) catch {
            _ = capi.PyErr_NoMemory();
            return error.Raised;
        };
        defer gpa.free(decoded);
        return capi.latin1(core.target.percent_decode(decoded, path));
    }

    fn set_remote(
        self: *Environs,
        template: *Template,
        connection: *const Connection,
        claims: ?*const Claims,
    ) capi.Error!void {
        if (claims) |said| if (said.client) |*address| {
            return self.set_claimed_remote(template, address);
        };
        const remote = &self.remotes[connection.index];
        const stamp = connection.generation +% 1;
        if (remote.generation != stamp or remote.address == null) {
            try self.learn_remote(remote, connection);
            remote.generation = stamp;
        }
        const keys = &self.names.keys;
        try template.set(.address, keys.REMOTE_ADDR, capi.new(remote.address.?));
        try template.set(.port, keys.REMOTE_PORT, capi.new(remote.port.?));
    }

    fn learn_remote(
        self: *Environs,
        remote: *Remote,
        connection: *const Connection,
    ) capi.Error!void {
        // Most clients of one server are a few proxies: one string for each in a row.
        const address = try self.address_text(&connection.address);
        errdefer capi.drop(address);
        const port = try port_text(core.sys.address_port(&connection.address));
        capi.drop_maybe(remote.address);
        capi.drop_maybe(remote.port);
        remote.address = address;
        remote.port = port;
    }

    fn address_text(self: *Environs, address: *const core.sys.Address) capi.Error!*Object {
        var storage: [core.sys.address_text_bytes_max]u8 = undefined;
        return self.address.get(core.sys.address_text(address, &storage));
    }

    /// Empty where there is none.
    fn port_text(port: ?u16) capi.Error!*Object {
        var storage: [8]u8 = undefined;
        const number = port orelse return capi.latin1("");
        return capi.latin1(std.fmt.bufPrint(&storage, "{d}", .{number}) catch "");
    }

    fn set_claimed_remote(
        self: *Environs,
        template: *Template,
        address: *const core.sys.Address,
    ) capi.Error!void {
        const keys = &self.names.keys;
        try template.set(.address, keys.REMOTE_ADDR, try self.address_text(address));
        const port = try port_text(core.sys.address_port(address));
        try template.set(.port, keys.REMOTE_PORT, port);
    }

    /// What trusted proxies said of the URL that the client used; the rest as for any request.
    fn set_claims(
        self: *Environs,
        template: *Template,
        exchange: *const Exchange,
        claims: *const Claims,
    ) capi.Error!void {
        const names = self.names;
        const keys = &names.keys;
        const bytes = exchange.bytes;
        template.has_claims = true;
        const scheme = switch (claims.scheme orelse .http) {
            .http => names.http,
            .https => names.https,
        };
        try template.set(.scheme, keys.@"wsgi.url_scheme", capi.new(scheme));
        const authority = exchange.head.authority.of(bytes);
        if (claims.server_port(bytes, authority)) |port| {
            var storage: [8]u8 = undefined;
            const text = std.fmt.bufPrint(&storage, "{d}", .{port}) catch "";
            try template.set(.server_port, keys.SERVER_PORT, try self.server_port.get(text));
        } else {
            try template.set_as_base(.server_port, keys.SERVER_PORT);
        }
        const prefix = claims.prefix.of(bytes);
        const script_name = if (prefix.len == 0)
            capi.new(names.empty_string)
        else
            try self.script_name.get(prefix);
        try template.set(.script_name, keys.SCRIPT_NAME, script_name);
    }

    fn unset_claims(self: *const Environs, template: *Template) capi.Error!void {
        const keys = &self.names.keys;
        try template.set_as_base(.scheme, keys.@"wsgi.url_scheme");
        try template.set_as_base(.server_port, keys.SERVER_PORT);
        try template.set_as_base(.script_name, keys.SCRIPT_NAME);
        template.has_claims = false;
    }

    /// Sets the known fields in the template. Returns whether there is more: fields without a name
    /// of ours, repeated or long ones, which the copy gets.
    fn set_fields(
        self: *Environs,
        template: *Template,
        crew: *const Crew,
        sender: Sender,
    ) capi.Error!bool {
        const exchange = crew.exchange;
        const head = &exchange.head;
        const keys = self.shown.getPtrConst(sender);
        var seen = std.StaticBitSet(fields.count).initEmpty();
        var wanted = seen;
        // RFC 9112 3.2.2: the target's authority replaces what Host said.
        var more = head.target_form == .absolute_form or head.framing == .chunked;
        for (head.lines()) |line| {
            const number = @intFromEnum(line.known);
            const key = keys[number] orelse {
                if (line.known == .other) {
                    more = true;
                } else if (sender == .stranger) {
                    note_stripped(crew, core.forwarded.flavour_of(line.known) != null);
                }
                continue;
            };
            const value = line.value.of(exchange.bytes);
            const is_first = !seen.isSet(number);
            seen.set(number);
            if (!is_first or value.len > cached_bytes_max) {
                more = true;
                continue;
            }
            wanted.set(number);
            try template.set_field(number, key, try self.values[number].get(value));
        }
        if (sender == .proxy_that_names_host) try self.set_host(template, exchange, &wanted);
        try template.keep_only(wanted, self.names);
        return more;
    }

    /// A trusted proxy's word for the host takes the place of what the request says.
    fn set_host(
        self: *Environs,
        template: *Template,
        exchange: *const Exchange,
        wanted: *std.StaticBitSet(fields.count),
    ) capi.Error!void {
        const number = @intFromEnum(fields.Name.host);
        const host = exchange.claims.?.host.of(exchange.bytes);
        wanted.set(number);
        const value = try self.values[number].get(host);
        try template.set_field(number, self.names.keys.HTTP_HOST, value);
    }

    /// Tells the operator, once, of a client whose forwarded fields were taken out.
    fn note_stripped(crew: *const Crew, is_forwarded: bool) void {
        if (!is_forwarded) return;
        crew.server.notify(.forwarded_fields_stripped, &crew.connection.address);
    }

    /// Puts what `set_fields` left out into the request's own dict, in the order of the lines.
    fn put_other_fields(
        self: *Environs,
        environ: *Object,
        crew: *const Crew,
        sender: Sender,
    ) capi.Error!void {
        const exchange = crew.exchange;
        const head = &exchange.head;
        const keys = self.shown.getPtrConst(sender);
        var seen = std.StaticBitSet(fields.count).initEmpty();
        var repeated: Repeated = .{ .environ = environ };
        defer repeated.deinit();
        for (head.lines()) |line| {
            const value = line.value.of(exchange.bytes);
            const number = @intFromEnum(line.known);
            if (keys[number]) |key| {
                // In the template, if short; a long first one was left to be put here.
                const is_first = !seen.isSet(number);
                seen.set(number);
                if (is_first and value.len <= cached_bytes_max) continue;
                try repeated.put_line(key, value);
            } else if (line.known == .other) {
                const name = line.name.of(exchange.bytes);
                if (!shows_x_forwarded(keys) and core.forwarded.is_x_forwarded(name)) {
                    note_stripped(crew, sender == .stranger);
                    continue;
                }
                const key = try self.other_key(name);
                defer capi.drop(key);
                try repeated.put_line(key, value);
            }
        }
        try repeated.join(self.names);
        if (head.target_form == .absolute_form and sender != .proxy_that_names_host) {
            const host = try capi.latin1(head.authority.of(exchange.bytes));
            try put(environ, self.names.keys.HTTP_HOST, host);
        }
        if (head.framing == .chunked) try self.put_gathered_length(environ, exchange);
    }

    fn shows_x_forwarded(keys: *const FieldKeys) bool {
        return keys[@intFromEnum(fields.Name.x_forwarded_for)] != null;
    }

    /// A chunked body is gathered, so its length is known: frameworks that look for nothing else
    /// (Django) find it, and the coding that was undone is not shown.
    fn put_gathered_length(
        self: *Environs,
        environ: *Object,
        exchange: *const Exchange,
    ) capi.Error!void {
        var storage: [24]u8 = undefined;
        const text = std.fmt.bufPrint(&storage, "{d}", .{exchange.body.length}) catch "";
        const length_key = self.names.environ[@intFromEnum(fields.Name.content_length)].?;
        try put(environ, length_key, try capi.latin1(text));
        const coding_key = self.names.environ[@intFromEnum(fields.Name.transfer_encoding)].?;
        try capi.checked(capi.PyDict_DelItem(environ, coding_key));
    }

    /// A new reference to the key of a field name that has no entry in `fields`.
    fn other_key(self: *Environs, name: []const u8) capi.Error!*Object {
        var storage: [fields.environ_prefix.len + other_name_bytes_max]u8 = undefined;
        if (name.len > other_name_bytes_max) return long_key(name);
        const entry = &self.other[std.hash.Wyhash.hash(0, name) % other_keys];
        if (entry.key) |key| {
            if (std.mem.eql(u8, entry.name[0..entry.len], name)) return capi.new(key);
        }
        const text = fields.environ_key_write(&storage, name) orelse return long_key(name);
        const key = try capi.latin1(text);
        capi.drop_maybe(entry.key);
        entry.key = capi.new(key);
        entry.len = name.len;
        @memcpy(entry.name[0..name.len], name);
        return key;
    }

    fn long_key(name: []const u8) capi.Error!*Object {
        const gpa = std.heap.c_allocator;
        const storage = gpa.alloc(u8, fields.environ_prefix.len + name.len) catch {
            _ = capi.PyErr_NoMemory();
            return error.Raised;
        };
        defer gpa.free(storage);
        const text = fields.environ_key_write(storage, name) orelse "";
        return capi.latin1(text);
    }
};

/// Repeated field lines are one list (RFC 9110 5.3). Their values are collected and joined once:
/// there may be thousands, and the GIL is held.
const Repeated = struct {
    environ: *Object,
    /// A dict of lists by key; null as long as nothing is repeated.
    lists: ?*Object = null,

    fn deinit(self: *Repeated) void {
        capi.drop_maybe(self.lists);
    }

    fn put_line(self: *Repeated, key: *Object, value: []const u8) capi.Error!void {
        const text = try capi.latin1(value);
        defer capi.drop(text);
        const first = capi.PyDict_GetItemWithError(self.environ, key) orelse {
            if (capi.PyErr_Occurred() != null) return error.Raised;
            return capi.checked(capi.PyDict_SetItem(self.environ, key, text));
        };
        const list = try self.list_of(key, first);
        try capi.checked(capi.PyList_Append(list, text));
    }

    /// Borrowed.
    fn list_of(self: *Repeated, key: *Object, first: *Object) capi.Error!*Object {
        if (self.lists == null) self.lists = try capi.owned(capi.PyDict_New());
        if (capi.PyDict_GetItemWithError(self.lists.?, key)) |list| return list;
        if (capi.PyErr_Occurred() != null) return error.Raised;
        const list = try capi.owned(capi.PyList_New(0));
        defer capi.drop(list);
        try capi.checked(capi.PyList_Append(list, first));
        try capi.checked(capi.PyDict_SetItem(self.lists.?, key, list));
        return list;
    }

    fn join(self: *Repeated, names: *const Names) capi.Error!void {
        const lists = self.lists orelse return;
        const cookie = names.environ[@intFromEnum(fields.Name.cookie)].?;
        var position: capi.ssize = 0;
        var key: *Object = undefined;
        var list: *Object = undefined;
        while (capi.PyDict_Next(lists, &position, &key, &list) != 0) {
            // Cookies have a separator of their own (RFC 6265 4.2.1).
            const separator = if (key == cookie) names.semicolon else names.comma;
            const whole = try capi.owned(capi.PyUnicode_Join(separator, list));
            try put(self.environ, key, whole);
        }
    }
};

/// Sets a key; the value's reference is used up.
fn put(environ: *Object, key: *Object, value: *Object) capi.Error!void {
    defer capi.drop(value);
    try capi.checked(capi.PyDict_SetItem(environ, key, value));
}
