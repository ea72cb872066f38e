# The program of a container that is only to be there: does nothing until a signal ends it.

	.text
	.globl	_start
_start:
again:
	mov	$34, %eax			# pause
	syscall
	jmp	again
