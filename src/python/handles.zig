//! What an application is given for one request: `start_response`, the `write` that it returns, the
//! callables in the environ, `wsgi.input`.
//!
//! All of them are new for each request and end with it: one that is kept raises, and a weak
//! reference to one dies with the request unless the object is kept. They lie in one piece of
//! memory, a `Call`, which goes to a free list when the last of them is gone; an object in it is
//! then made anew, as a malloc would give the same address. No reference count is read to decide
//! that. GIL held.

const std = @import("std");
const core = @import("core");
const capi = @import("capi.zig");
const call_module = @import("call.zig");
const suspend_module = @import("suspend.zig");
const input_stream = @import("input_stream.zig");
const Object = capi.Object;
const Crew = core.server.Crew;

pub const Kind = enum(u8) {
    start_response,
    write,
    early_hints,
    client_disconnected,
    any_thread,
    @"suspend",
    readable,
    writable,
    /// `x-wsgiorg.fdevent.timeout`; not callable.
    timeout,
    /// What runs inside the request's context; the application never has it.
    step,
};

pub const Handle = extern struct {
    head: Object,
    vectorcall: ?capi.Vectorcall,
    weak_references: ?*Object,
    call: *Call,
    kind: Kind,
};

/// What a callable is, beside its request.
pub const Function = struct {
    name: [*:0]const u8,
    doc: [*:0]const u8,
    vectorcall: capi.Vectorcall,
};

const gpa = std.heap.c_allocator;

/// Calls in memory that are not in use; the rest goes back to malloc.
const unused_max = 256;
var unused: ?*Call = null;
var unused_count: usize = 0;

var callable_type: *capi.Type = undefined;
var timeout_type: *capi.Type = undefined;
var functions: std.EnumArray(Kind, ?Function) = undefined;

/// `step` is what runs inside the request's context.
pub fn init_types(step: Function) capi.Error!void {
    callable_type = capi.PyType_FromSpec(&callable_spec) orelse return error.Raised;
    timeout_type = capi.PyType_FromSpec(&timeout_spec) orelse return error.Raised;
    functions = .init(.{
        .start_response = call_module.start_function,
        .write = call_module.write_function,
        .early_hints = call_module.hints_function,
        .client_disconnected = call_module.disconnected_function,
        .any_thread = call_module.any_thread_function,
        .@"suspend" = suspend_module.suspend_function,
        .readable = suspend_module.readable_function,
        .writable = suspend_module.writable_function,
        .timeout = null,
        .step = step,
    });
}

/// One request, and the memory of its objects.
pub const Call = struct {
    /// The worker; null when the request is over, or its response is parked.
    crew: ?*Crew,
    /// A `write` is in progress, or the worker itself sends, perhaps waiting for the client
    /// without the GIL: nobody else may send.
    busy: bool,
    /// The response waits for its client, so there is no worker but there is a request.
    is_parked: bool,
    /// The last suspension ended by its time. The truth value of `x-wsgiorg.fdevent.timeout`.
    timed_out: bool,
    /// Begins with the next empty string; a reference.
    suspension: ?*core.suspension.Suspension,
    handles: std.EnumArray(Kind, Handle),
    input: input_stream.InputStream,
    /// Who needs the memory: objects that have references, the request, a template of environs.
    users: usize,
    /// In the list of unused ones.
    next: ?*Call,

    const objects = std.enums.values(Kind).len + 1;

    /// A new request with new objects, to each of which the server has a reference until `end`.
    /// `last` is what a template of environs has: its memory serves again, if only the template
    /// needs it.
    pub fn create(last: ?*Call) capi.Error!*Call {
        const of_template = if (last) |call| (if (call.users == 1) call else null) else null;
        const self = of_template orelse take_unused() orelse try make();
        self.crew = null;
        self.busy = false;
        self.is_parked = false;
        self.timed_out = false;
        self.suspension = null;
        for (&self.handles.values) |*handle| capi.revive(&handle.head);
        capi.revive(&self.input.head);
        input_stream.reset(&self.input);
        self.users = objects + 1 + @as(usize, @intFromBool(of_template != null));
        return self;
    }

    fn take_unused() ?*Call {
        const self = unused orelse return null;
        unused = self.next;
        unused_count -= 1;
        return self;
    }

    /// Memory with all that does not change from request to request.
    fn make() capi.Error!*Call {
        const self = gpa.create(Call) catch {
            _ = capi.PyErr_NoMemory();
            return error.Raised;
        };
        for (&self.handles.values, std.enums.values(Kind)) |*handle, kind| {
            const function = functions.get(kind);
            handle.* = .{
                .head = .{
                    .refcount = 0,
                    .type = if (function == null) timeout_type else callable_type,
                },
                .vectorcall = if (function) |one| one.vectorcall else null,
                .weak_references = null,
                .call = self,
                .kind = kind,
            };
        }
        input_stream.prepare(&self.input, self);
        return self;
    }

    pub fn object(self: *Call, kind: Kind) *Object {
        return &self.handles.getPtr(kind).head;
    }

    /// The worker is not the request's any more. A thread that still writes has to let go first.
    pub fn close_for_good(self: *Call) void {
        while (self.busy) {
            if (self.crew) |crew| core.sys.shutdown_both(crew.connection.fd);
            const state = capi.PyEval_SaveThread();
            core.sys.sleep_ms(1);
            capi.PyEval_RestoreThread(state);
        }
        self.crew = null;
    }

    /// The request is over, and its objects end, but for those that the application keeps. Python
    /// code may run: callbacks of weak references.
    pub fn end(self: *Call) void {
        self.close_for_good();
        input_stream.finish(&self.input);
        var ended: usize = 1;
        for (&self.handles.values) |*handle| {
            // What `capi.drop` does, but for counting down one by one.
            capi.uncount(&handle.head, 1);
            if (handle.head.refcount > 0) continue;
            clear_weak_references(handle);
            ended += 1;
        }
        self.give_back(ended);
    }

    /// One more needs the memory.
    pub fn retain(self: *Call) void {
        self.users += 1;
    }

    /// One fewer.
    pub fn release(self: *Call) void {
        self.give_back(1);
    }

    fn give_back(self: *Call, shares: usize) void {
        self.users -= shares;
        if (self.users > 0) return;
        if (unused_count == unused_max) return gpa.destroy(self);
        self.next = unused;
        unused = self;
        unused_count += 1;
    }
};

pub fn of(handle: *Object) *Handle {
    return @ptrCast(@alignCast(handle));
}

fn dealloc(object: *Object) callconv(.c) void {
    clear_weak_references(of(object));
    of(object).call.release();
}

inline fn clear_weak_references(self: *Handle) void {
    if (self.weak_references != null) capi.PyObject_ClearWeakRefs(&self.head);
}

// ---- Callables ---------------------------------------------------------------------------------

/// `object.__call__(...)`, which does not look for the vectorcall; PyObject_Call does.
fn call_slot(object: *Object, arguments: *Object, named: ?*Object) callconv(.c) ?*Object {
    return capi.PyObject_Call(object, arguments, named);
}

fn repr(object: *Object) callconv(.c) ?*Object {
    const function = functions.get(of(object).kind).?;
    return capi.PyUnicode_FromFormat("<serve_zig %s at %p>", function.name, object);
}

fn get_name(object: *Object, _: ?*anyopaque) callconv(.c) ?*Object {
    return capi.PyUnicode_InternFromString(functions.get(of(object).kind).?.name);
}

fn get_doc(object: *Object, _: ?*anyopaque) callconv(.c) ?*Object {
    return capi.PyUnicode_InternFromString(functions.get(of(object).kind).?.doc);
}

const methods = [_]capi.MethodDef{
    capi.copied_as_itself[0],
    capi.copied_as_itself[1],
    capi.not_pickled,
    .{},
};

const attributes = [_]capi.Attribute{
    .{ .name = "__name__", .get = get_name },
    .{ .name = "__qualname__", .get = get_name },
    .{ .name = "__doc__", .get = get_doc },
    .{},
};

const weak_references = capi.weak_references_at(@offsetOf(Handle, "weak_references"));

const callable_members = [_]capi.Member{
    weak_references[0],
    .offset_of("__vectorcalloffset__", @offsetOf(Handle, "vectorcall")),
    .{},
};

const callable_slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.tp_call, @ptrCast(&call_slot)),
    capi.slot(capi.tp_repr, @ptrCast(&repr)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_members, @ptrCast(&callable_members)),
    capi.slot(capi.tp_getset, @ptrCast(&attributes)),
    capi.slot_end,
};

const callable_spec: capi.Spec = .{
    .name = "serve_zig._core.RequestCallable",
    .basicsize = @sizeOf(Handle),
    .flags = capi.type_no_instances | capi.type_immutable | capi.type_has_vectorcall,
    .slots = &callable_slots,
};

// ---- x-wsgiorg.fdevent.timeout -----------------------------------------------------------------

// The key's value is this object and not True or False, so that copies of the environ, such as
// middleware makes, tell of each wait as well. It compares and hashes as the bool that it stands
// for, and so not as it did after a wait that ended otherwise.

fn truth(object: *Object) *Object {
    return capi.boolean(of(object).call.timed_out);
}

fn is_true(object: *Object) callconv(.c) c_int {
    return @intFromBool(of(object).call.timed_out);
}

fn as_index(object: *Object) callconv(.c) ?*Object {
    return capi.PyLong_FromLongLong(@intFromBool(of(object).call.timed_out));
}

fn timeout_repr(object: *Object) callconv(.c) ?*Object {
    const value = truth(object);
    defer capi.drop(value);
    return capi.PyObject_Repr(value);
}

fn timeout_hash(object: *Object) callconv(.c) capi.ssize {
    const value = truth(object);
    defer capi.drop(value);
    return capi.PyObject_Hash(value);
}

fn compare(object: *Object, other: *Object, operation: c_int) callconv(.c) ?*Object {
    const value = truth(object);
    defer capi.drop(value);
    return capi.PyObject_RichCompare(value, other, operation);
}

const timeout_slots = [_]capi.Slot{
    capi.slot(capi.tp_dealloc, @ptrCast(&dealloc)),
    capi.slot(capi.nb_bool, @ptrCast(&is_true)),
    capi.slot(capi.nb_index, @ptrCast(&as_index)),
    capi.slot(capi.tp_repr, @ptrCast(&timeout_repr)),
    capi.slot(capi.tp_hash, @ptrCast(&timeout_hash)),
    capi.slot(capi.tp_richcompare, @ptrCast(&compare)),
    capi.slot(capi.tp_methods, @ptrCast(&methods)),
    capi.slot(capi.tp_members, @ptrCast(&weak_references)),
    capi.slot(capi.tp_doc, "Whether the last wait of the response ended by its time"),
    capi.slot_end,
};

const timeout_spec: capi.Spec = .{
    .name = "serve_zig._core.Timeout",
    .basicsize = @sizeOf(Handle),
    .flags = capi.type_no_instances | capi.type_immutable,
    .slots = &timeout_slots,
};
