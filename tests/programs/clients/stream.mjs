const answer = await fetch(process.argv[2])
for await (const piece of answer.body) process.stdout.write(piece)
