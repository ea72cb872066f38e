# The first program of a container: waits until it is let go, then becomes the container's own program.
#
#   gate FIFO COMMAND [ARGUMENT]...
#
# Opens FIFO for reading, reads one byte, and executes COMMAND with the arguments, the environment and the
# descriptors that it was itself given. A COMMAND without a slash is looked for in PATH;
# elements of PATH that are empty or relative are passed over: the working folder is nobody's program folder.
# Ends with 127 when it is not let go (end of file, no FIFO) or there is no such command, and with 126 when
# the command cannot be executed; a line on stderr says which.
#
# Freestanding: system calls alone, no data but constants, 4 KiB of stack. `make generate` assembles it.
#
# r12: arguments of the command   r13: environment   r14: command   r15: whether a candidate was forbidden
# rbx: the rest of PATH           rbp: whether an element is passed over
# r8: where an element must have ended for the command to fit behind it

	.text
	.globl	_start
_start:
	mov	(%rsp), %rax			# argc, argv[0] … argv[argc] = 0, then the environment
	lea	24(%rsp), %r12
	lea	16(%rsp,%rax,8), %r13
	cmp	$3, %rax
	lea	no_command(%rip), %rsi
	jl	refuse

open:
	mov	$-100, %edi			# AT_FDCWD
	mov	16(%rsp), %rsi
	mov	$0x80000, %edx			# O_RDONLY | O_CLOEXEC: the command does not inherit it
	xor	%r10d, %r10d
	mov	$257, %eax			# openat
	syscall
	cmp	$-4, %eax			# EINTR
	je	open
	test	%eax, %eax
	js	no_fifo
	mov	%eax, %ebx
wait:
	mov	%ebx, %edi
	lea	-8(%rsp), %rsi
	mov	$1, %edx
	xor	%eax, %eax			# read
	syscall
	cmp	$-4, %eax			# EINTR
	je	wait
	lea	not_let_go(%rip), %rsi
	cmp	$1, %eax
	jne	refuse

	mov	(%r12), %r14
	cmpb	$0, (%r14)
	je	not_found
	mov	%r14, %rax
look_for_slash:
	mov	(%rax), %cl
	inc	%rax
	cmp	$'/', %cl
	je	execute_path
	test	%cl, %cl
	jnz	look_for_slash

	sub	%r14, %rax			# length of the command with its final NUL
	sub	$4096, %rsp
	lea	4095(%rsp), %r8
	sub	%rax, %r8
	lea	default_path(%rip), %rbx
	mov	%r13, %rdx
look_for_path:
	mov	(%rdx), %rsi
	add	$8, %rdx
	test	%rsi, %rsi
	jz	search
	cmpl	$0x48544150, (%rsi)		# PATH
	jne	look_for_path
	cmpb	$'=', 4(%rsi)
	jne	look_for_path
	lea	5(%rsi), %rbx
search:
	xor	%r15d, %r15d
element:
	xor	%ebp, %ebp
	cmpb	$'/', (%rbx)
	setne	%bpl
	mov	%rsp, %rdi
copy_element:
	mov	(%rbx), %al
	test	%al, %al
	jz	end_of_element
	cmp	$':', %al
	je	end_of_element
	inc	%rbx
	cmp	%r8, %rdi
	jae	too_long
	mov	%al, (%rdi)
	inc	%rdi
	jmp	copy_element
too_long:
	mov	$1, %ebp
	jmp	copy_element
end_of_element:
	test	%ebp, %ebp
	jnz	next_element
	movb	$'/', (%rdi)
	inc	%rdi
	mov	%r14, %rsi
copy_command:
	lodsb
	stosb
	test	%al, %al
	jnz	copy_command
	mov	%rsp, %rdi
	call	execute
	cmp	$-2, %eax			# ENOENT
	je	next_element
	cmp	$-20, %eax			# ENOTDIR
	je	next_element
	cmp	$-13, %eax			# EACCES: another element may have one that can be executed
	jne	not_executable
	mov	$1, %r15d
next_element:
	cmpb	$0, (%rbx)
	je	searched
	inc	%rbx
	jmp	element
searched:
	test	%r15d, %r15d
	jnz	not_executable
	jmp	not_found

execute_path:
	mov	%r14, %rdi
	call	execute
	cmp	$-2, %eax			# ENOENT
	je	not_found
	cmp	$-20, %eax			# ENOTDIR
	je	not_found

not_executable:
	lea	cannot(%rip), %r12
	mov	$126, %r13d
	jmp	refuse_command
not_found:
	lea	absent(%rip), %r12
	mov	$127, %r13d
	jmp	refuse_command
no_fifo:
	mov	16(%rsp), %r14
	lea	not_opened(%rip), %r12
	mov	$127, %r13d
refuse_command:					# r14: a name   r12: what is wrong with it   r13: how to end
	lea	prefix(%rip), %rsi
	call	say
	mov	%r14, %rsi
	call	say
	mov	%r12, %rsi
	call	say
	mov	%r13d, %edi
	jmp	end
refuse:						# rsi: what to say
	call	say
	mov	$127, %edi
end:
	mov	$231, %eax			# exit_group
	syscall
	hlt

execute:					# rdi: a path; comes back with what is wrong with it
	mov	%r12, %rsi
	mov	%r13, %rdx
	mov	$59, %eax			# execve
	syscall
	ret

say:						# rsi: text that ends with a NUL
	xor	%edx, %edx
measure:
	cmpb	$0, (%rsi,%rdx)
	je	measured
	inc	%rdx
	jmp	measure
measured:
	mov	$2, %edi
	mov	$1, %eax			# write
	syscall
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
