// The first program of a container on arm64; gate_x86_64.S says what it does.
//
// x19: arguments of the command   x20: environment   x21: command   w22: whether a candidate was forbidden
// x23: the rest of PATH           w24: whether an element is passed over
// x25: where an element must have ended for the command to fit behind it

	.text
	.globl	_start
_start:
	ldr	x0, [sp]			// argc, argv[0] … argv[argc] = 0, then the environment
	add	x19, sp, #24
	add	x20, sp, #16
	add	x20, x20, x0, lsl #3
	cmp	x0, #3
	adr	x1, no_command
	b.lt	refuse
	ldr	x21, [sp, #16]			// the FIFO

open:
	mov	x0, #-100			// AT_FDCWD
	mov	x1, x21
	mov	x2, #0x80000			// O_RDONLY | O_CLOEXEC: the command does not inherit it
	mov	x3, #0
	mov	x8, #56				// openat
	svc	#0
	cmn	x0, #4				// EINTR
	b.eq	open
	tbnz	x0, #63, no_fifo
	mov	x23, x0
	sub	sp, sp, #16
wait:
	mov	x0, x23
	mov	x1, sp
	mov	x2, #1
	mov	x8, #63				// read
	svc	#0
	cmn	x0, #4				// EINTR
	b.eq	wait
	adr	x1, not_let_go
	cmp	x0, #1
	b.ne	refuse

	ldr	x21, [x19]
	ldrb	w2, [x21]
	cbz	w2, not_found
	mov	x1, x21
look_for_slash:
	ldrb	w2, [x1], #1
	cmp	w2, #'/'
	b.eq	execute_path
	cbnz	w2, look_for_slash

	sub	x1, x1, x21			// length of the command with its final NUL
	sub	sp, sp, #4096
	mov	x2, #4095
	add	x25, sp, x2
	sub	x25, x25, x1
	adr	x23, default_path
	mov	x1, x20
	mov	w4, #0x4150			// PATH
	movk	w4, #0x4854, lsl #16
look_for_path:
	ldr	x2, [x1], #8
	cbz	x2, search
	ldr	w3, [x2]
	cmp	w3, w4
	b.ne	look_for_path
	ldrb	w3, [x2, #4]
	cmp	w3, #'='
	b.ne	look_for_path
	add	x23, x2, #5
search:
	mov	w22, #0
element:
	ldrb	w2, [x23]
	cmp	w2, #'/'
	cset	w24, ne
	mov	x3, sp
copy_element:
	ldrb	w2, [x23]
	cbz	w2, end_of_element
	cmp	w2, #':'
	b.eq	end_of_element
	add	x23, x23, #1
	cmp	x3, x25
	b.hs	too_long
	strb	w2, [x3], #1
	b	copy_element
too_long:
	mov	w24, #1
	b	copy_element
end_of_element:
	cbnz	w24, next_element
	mov	w2, #'/'
	strb	w2, [x3], #1
	mov	x1, x21
copy_command:
	ldrb	w2, [x1], #1
	strb	w2, [x3], #1
	cbnz	w2, copy_command
	mov	x0, sp
	bl	execute
	cmn	x0, #2				// ENOENT
	b.eq	next_element
	cmn	x0, #20				// ENOTDIR
	b.eq	next_element
	cmn	x0, #13				// EACCES: another element may have one that can be executed
	b.ne	not_executable
	mov	w22, #1
next_element:
	ldrb	w2, [x23], #1
	cbnz	w2, element
	cbnz	w22, not_executable
	b	not_found

execute_path:
	mov	x0, x21
	bl	execute
	cmn	x0, #2				// ENOENT
	b.eq	not_found
	cmn	x0, #20				// ENOTDIR
	b.eq	not_found

not_executable:
	adr	x19, cannot
	mov	w20, #126
	b	refuse_command
not_found:
	adr	x19, absent
	mov	w20, #127
	b	refuse_command
no_fifo:
	adr	x19, not_opened
	mov	w20, #127
refuse_command:					// x21: a name   x19: what is wrong with it   w20: how to end
	adr	x1, prefix
	bl	say
	mov	x1, x21
	bl	say
	mov	x1, x19
	bl	say
	mov	w0, w20
	b	end
refuse:						// x1: what to say
	bl	say
	mov	w0, #127
end:
	mov	x8, #94				// exit_group
	svc	#0
	brk	#0

execute:					// x0: a path; comes back with what is wrong with it
	mov	x1, x19
	mov	x2, x20
	mov	x8, #221			// execve
	svc	#0
	ret

say:						// x1: text that ends with a NUL
	mov	x2, #0
measure:
	ldrb	w3, [x1, x2]
	cbz	w3, measured
	add	x2, x2, #1
	b	measure
measured:
	mov	x0, #2
	mov	x8, #64				// write
	svc	#0
	ret

default_path:
	.asciz	"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
no_command:
	.asciz	"clawbox: there is no command\n"
not_let_go:
	.asciz	"clawbox: not started: the server went away\n"
prefix:
	.asciz	"clawbox: "
not_opened:
	.asciz	": cannot be opened\n"
absent:
	.asciz	": not found\n"
cannot:
	.asciz	": cannot be executed\n"
